"""What requests that prove nothing may cost: they are limited by peer, and so are their lines in the log.

Everybody can send a request to an unknown path, to an unknown webhook address, or with a forged state. Such requests
are counted as failures, and a peer with too many gets 429 before anything else is done. Never limited are

- webhooks to an address at which the same peer has delivered a verified one, so that nobody can stop a provider's
  deliveries with failures from the provider's own addresses,
- probes, which do not get here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from http import HTTPStatus
from urllib.parse import quote

import structlog
from cachetools import TTLCache
from starlette.datastructures import Headers
from starlette.types import Scope

from integration_server.peers import LogLimiter, PeerLimiter, TrustedProxies, peer_key
from integration_server.sidecar.http_limits import HttpLimits

_VERIFIED_TTL = timedelta(days=1).total_seconds()  # many accounts have a webhook or more on a working day
_MAX_VERIFIED = 10_000  # pairs of peer and path; each has once delivered a verified webhook
_VERIFIED = "verified"

# The server itself fails, or is full. The client may have done nothing wrong.
_NOT_THE_PEERS_FAULT = frozenset({HTTPStatus.TOO_MANY_REQUESTS, *(status for status in HTTPStatus if status >= 500)})


def mark_verified(scope: Scope) -> None:
    """Record that a request has proven that it comes from a provider or from a user's authorization attempt."""
    scope.setdefault("state", {})[_VERIFIED] = True


def is_verified(scope: Scope) -> bool:
    """Whether `mark_verified` was called for a request."""
    return bool(scope.get("state", {}).get(_VERIFIED))


class Area(Enum):
    """The parts of the sidecar, with the prefixes of their paths. Failures in one do not count in another."""

    CALLBACK = "/api/v1/integrations/callback"
    WEBHOOKS = "/api/v1/webhooks/"
    OTHER = "/"

    @classmethod
    def of(cls, path: str) -> "Area":
        """The first area with the prefix of a path."""
        return next((area for area in cls if path.startswith(area.value)), cls.OTHER)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, and where to."""

    peer: str
    path: str = ""
    area: Area = Area.OTHER

    @property
    def key(self) -> str:
        """What failures are counted by."""
        return f"{self.area.name} {self.peer}"


class AnonymousLimits:
    """Counts the failures of each peer, and logs them."""

    def __init__(
        self, limits: HttpLimits, proxies: TrustedProxies, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._proxies = proxies
        self._failures = PeerLimiter(
            burst=limits.failure_burst, per_second=limits.failures_per_second, monotonic=monotonic
        )
        self._verified: TTLCache[tuple[str, str], None] = TTLCache(_MAX_VERIFIED, _VERIFIED_TTL, monotonic)
        self._log_limiter = LogLimiter(monotonic=monotonic)
        self._log = structlog.get_logger(__name__)

    def is_proxy(self, host: str) -> bool:
        """Whether a connection comes from a trusted proxy."""
        return self._proxies.is_proxy(host)

    def sender_of(self, scope: Scope) -> Sender:
        """The sender of a request."""
        host = scope["client"][0] if scope.get("client") else ""
        address = self._proxies.client_address(host, Headers(scope=scope).getlist("x-forwarded-for"))
        return Sender(peer_key(address), scope["path"], Area.of(scope["path"]))

    def retry_after(self, sender: Sender) -> timedelta | None:
        """How long a sender has to wait; None if its request may be handled now."""
        if (sender.peer, sender.path) in self._verified:
            return None
        return self._failures.retry_after(sender.key)

    def record(self, sender: Sender, scope: Scope, status: int) -> None:
        """Count a request that failed. A verified webhook clears its sender's failures."""
        if is_verified(scope):
            # Not so a callback: every user of an app has a valid state, and could then send forged ones.
            if sender.area is Area.WEBHOOKS:
                self._failures.forgive(sender.key)
                self._verified[sender.peer, sender.path] = None
            return
        self._log_failure(sender, scope["method"], status)
        if status not in _NOT_THE_PEERS_FAULT:
            self._failures.record_failure(sender.key)

    def record_refusal(self, peer: str, status: HTTPStatus) -> None:
        """Log a request that the parser or a limit refused, of which nothing is known but its peer."""
        self._log_failure(Sender(peer), "", status)

    def _log_failure(self, sender: Sender, method: str, status: int) -> None:
        """One line for each peer and minute, with the number of failures that had none."""
        suppressed = self._log_limiter.admit(sender.peer)
        if suppressed is not None:
            # Quoted, so that a path cannot add lines to the log.
            path = quote(sender.path)[:200]
            fields = {"peer": sender.peer, "method": method, "path": path, "status": status}
            self._log.info("http_request_unverified", **fields, suppressed=suppressed)
