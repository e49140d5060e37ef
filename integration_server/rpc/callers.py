"""Callers: the identity that makes a call, its permissions, and the quotas of its calls.

A caller is a service, a user or the sidecar; where callers are not authenticated, the address of the client.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Protocol, TypeAlias
from urllib.parse import unquote

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import QuotaExceeded
from integration_server.domain.integration import UserId
from integration_server.peers import TrustedProxies, peer_key
from integration_server.rpc.methods import SIDECAR_PERMISSIONS, Context, Permission

CallerLookup: TypeAlias = Callable[[Context], str]
"""Returns the name of a call's caller."""

KNOWN_PEERS = 1024
"""The peers whose addresses are kept as they were parsed: each makes many calls."""

_FORWARDED_FOR = "x-forwarded-for"

USER = "user"
"""The name of callers that are users."""

SIDECAR = "sidecar"
"""The name of the sidecar."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """The permissions that a policy grants a caller, and the integration types that they apply to."""

    granted: frozenset[Permission] = frozenset()
    allowed_types: AllowedTypes = NO_INTEGRATION_TYPES


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller and its permissions. A caller with a `user_id` acts for that user only."""

    name: str
    permissions: Permissions
    user_id: UserId | None = None


SIDECAR_CALLER = Caller(SIDECAR, Permissions(SIDECAR_PERMISSIONS, ALL_INTEGRATION_TYPES))
"""The sidecar, whichever way it authenticates."""


# --- the current call ------------------------------------------------------------------------------------------------

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The caller of the current call. None where callers are not authenticated."""


def current_allowed_types() -> AllowedTypes:
    """Return the integration types that the current call may access: all, where callers are not authenticated."""
    caller = _caller.get()
    return ALL_INTEGRATION_TYPES if caller is None else caller.permissions.allowed_types


def current_caller() -> Caller | None:
    """Return the current call's caller. None where callers are not authenticated."""
    return _caller.get()


def set_current_caller(caller: Caller | None) -> None:
    """Set the current call's caller, whose permission has been checked."""
    _caller.set(caller)


def current_caller_name() -> str | None:
    """Return the name that the policy has for the current call's caller; None where callers are not authenticated."""
    caller = _caller.get()
    return None if caller is None else caller.name


def caller_name(_context: Context) -> str:
    """Return the name that the policy has for the current call's caller; empty where callers are not authenticated."""
    caller = _caller.get()
    return "" if caller is None else caller.name


def quota_key(context: Context) -> str:
    """Return the key of the current call's quota: each service and each user has its own."""
    caller = _caller.get()
    user_id = None if caller is None else caller.user_id
    # No name has a control character: a service with a slash in its name does not share a user's quota.
    return caller_name(context) if user_id is None else f"{caller_name(context)}\0{user_id}"


def caller_or_address(address_of: CallerLookup) -> CallerLookup:
    """Return a lookup of the caller's name; where callers are not authenticated, of the client's address."""
    return lambda context: caller_name(context) or address_of(context)


def quota_key_or_peer(address_of: CallerLookup) -> CallerLookup:
    """Return a lookup of the caller's quota key; where callers are not authenticated, of the client's peer key."""
    key_of = lru_cache(KNOWN_PEERS)(peer_key)
    return lambda context: quota_key(context) or key_of(address_of(context))


# --- addresses -------------------------------------------------------------------------------------------------------


def peer_address(context: Context) -> str:
    """Return the address of a call's peer without its port; for a Unix socket, `unix`."""
    return _address_in(context.peer())


@lru_cache(KNOWN_PEERS)
def _address_in(peer: str) -> str:
    scheme, _, rest = unquote(peer).partition(":")  # ipv4:10.0.0.1:50000, ipv6:%5B::1%5D:50000 or unix:path
    return rest.rpartition(":")[0].strip("[]") if scheme in {"ipv4", "ipv6"} else scheme


def client_address(proxies: TrustedProxies) -> CallerLookup:
    """Return a lookup of the address of a call's client: the caller, where callers are not authenticated."""

    of_peer = lru_cache(KNOWN_PEERS)(lambda peer: proxies.client_address(peer, ()))

    def address_of(context: Context) -> str:
        if not proxies.networks:
            return of_peer(peer_address(context))
        entries = context.invocation_metadata() or ()
        forwarded_for = (str(value) for key, value in entries if key == _FORWARDED_FOR)
        return proxies.client_address(peer_address(context), forwarded_for)

    return address_of


# --- calls of each caller --------------------------------------------------------------------------------------------


class CallCounts(Protocol):
    """Counts calls by key. A call is under way between `change(key, 1)` and `change(key, -1)`."""

    def in_flight(self, key: str) -> int:
        """The calls of the key that are under way."""

    def change(self, key: str, by: int) -> None:
        """Change the number of calls of the key that are under way in this process."""

    def add_to_rate(self, key: str, second: int, calls: int = 1) -> int:
        """Count calls of the key in a second of the system's monotonic clock; returns how many it has had."""

    def debt_end(self, key: str) -> int:
        """The end of the key's debt, in calls at its rate since the start of the clock."""

    def set_debt_end(self, key: str, end: int, now: int) -> None:
        """Set the end of the key's debt, unless a later one is known. Debts that have ended by `now` are forgotten."""


class LocalCounts:
    """The `CallCounts` of one process."""

    def __init__(self) -> None:
        self._in_flight: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._second = 0
        self._debt_ends: dict[str, int] = {}

    def in_flight(self, key: str) -> int:
        """The calls of the key that are under way."""
        return self._in_flight[key]

    def change(self, key: str, by: int) -> None:
        """Change the number of calls that are under way."""
        self._in_flight[key] += by
        if not self._in_flight[key]:
            del self._in_flight[key]

    def add_to_rate(self, key: str, second: int, calls: int = 1) -> int:
        """Count calls in a second."""
        if second != self._second:
            self._second = second
            self._calls.clear()
        self._calls[key] += calls
        return self._calls[key]

    def debt_end(self, key: str) -> int:
        """The end of the key's debt."""
        return self._debt_ends.get(key, 0)

    def set_debt_end(self, key: str, end: int, now: int) -> None:
        """Set the end of the key's debt."""
        for other in [other for other, debt_end in self._debt_ends.items() if debt_end <= now]:
            del self._debt_ends[other]
        self._debt_ends[key] = max(end, self.debt_end(key))


class CallRate:
    """The calls of each caller in this second. Raises `QuotaExceeded` beyond `per_second`.

    `counts` counts them, also those of other workers; None for this process only.

    A call with many items is let through while the caller is within its rate, and counts as one call for each item:
    what exceeds the rate is taken from the next seconds. Otherwise a low rate would admit no batch at all.

    Items that a stream resumes do not count, as far as the caller's allowance for them suffices: `max_resumed` items,
    which come back at the caller's rate. All clients can then resume at once after a restart, and one that does so
    again and again gets twice its rate.
    """

    def __init__(
        self,
        per_second: int,
        counts: CallCounts | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_resumed: int = 0,
    ) -> None:
        self.counts = LocalCounts() if counts is None else counts
        self._per_second = per_second
        self._max_resumed = max_resumed
        self._monotonic = monotonic

    def count(self, caller: str) -> None:
        """Count a call."""
        second = int(self._monotonic())
        if self.counts.add_to_rate(caller, second) + self._debt(caller, second) > self._per_second:
            raise self._exceeded(caller, second)

    def count_items(self, caller: str, items: int, resumed: int = 0) -> None:
        """Count the items of a call that is counted once already. Of these, `resumed` are resumed."""
        second, limit = int(self._monotonic()), self._per_second
        debt = self._debt(caller, second)
        if self.counts.add_to_rate(caller, second, 0) + debt > limit:  # other calls have counted theirs meanwhile
            raise self._exceeded(caller, second)
        items -= self._take_resumed(caller, second, resumed)
        excess = self.counts.add_to_rate(caller, second, max(0, items - 1)) + debt - limit
        if excess > 0:
            self.counts.set_debt_end(caller, (second + 1) * limit + excess, second * limit)

    def _take_resumed(self, caller: str, second: int, resumed: int) -> int:
        """How many of the resumed items the caller's allowance has left; they are taken from it."""
        key, now = f"{caller}\0\0resumed", second * self._per_second  # no user's name has a control character
        used = self._debt(key, second)
        taken = min(resumed, max(0, self._max_resumed - used))
        if taken:
            self.counts.set_debt_end(key, now + used + taken, now)
        return taken

    def _debt(self, caller: str, second: int) -> int:
        """What the items of earlier seconds take from this one and the next."""
        return max(0, self.counts.debt_end(caller) - second * self._per_second)

    def _exceeded(self, caller: str, second: int) -> QuotaExceeded:
        debt = self._debt(caller, second + 1)
        return QuotaExceeded("in this second", timedelta(seconds=1 + debt // self._per_second))


class CallQuota:
    """Limits each caller's concurrent calls and its calls per second."""

    def __init__(self, rate: CallRate, *, concurrency: int) -> None:
        self._rate = rate
        self._counts = rate.counts
        self._concurrency = concurrency

    def begin(self, caller: str) -> None:
        """Count a call, which `end` ends. Raises `QuotaExceeded`."""
        if self._counts.in_flight(caller) >= self._concurrency:
            raise QuotaExceeded("under way")
        self._rate.count(caller)
        self._counts.change(caller, 1)

    def end(self, caller: str) -> None:
        """End a call."""
        self._counts.change(caller, -1)
