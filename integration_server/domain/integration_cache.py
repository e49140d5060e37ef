"""The cache of integrations with their encrypted credentials: what may be served, and what must be read again.

It serves only while the change feed is up to date. This bounds how long a replica serves what another one has changed
or disconnected (`MAX_STALENESS`), and stops serving while the database does not respond.
"""

import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter
from sys import getsizeof
from typing import Any

from cachetools import LRUCache

from integration_server.domain.integration import IntegrationId, StoredIntegration, UserId

MAX_STALENESS = timedelta(seconds=0.8)
"""How long after a change the old state may be served: within a second, with the time that a response takes."""

# How long a change can stay unknown that the feed does not report, as when somebody deletes its rows. Long enough that
# the renewal of what is in use costs little: 10,000 integrations are a statement of 50 rows a second.
_TTL = timedelta(minutes=5)
_RENEW_FROM, _RENEW_SPREAD = 0.5, 0.3  # of the TTL: what is used at least once a minute never expires
_RENEWAL_INTERVAL = 10.0  # seconds until an entry is due again whose renewal has failed
_FAILING_TTL = 5.0  # seconds: the feed does not report each failed refresh, and another replica may have recorded one

_texts_of = attrgetter(
    *("uid", "user_id", "integration_type", "name", "account_id", "account_label", "webhook_secret_id", "oauth_client")
)
_ENTRY_BYTES = 2048  # of all objects of an entry that have one size: at most nine times and four collections among them
_CONFIG_FACTOR = 6  # bytes of memory for a character of JSON, at most


@dataclass(slots=True, eq=False)
class _Entry:
    found: StoredIntegration
    size: int  # in bytes
    renew_time: float  # on the cache's clock
    expire_time: float


class RaceSafeCache:
    """The integrations that were used last, of at most `max_bytes` of memory; a `ChangeListener`.

    A change may become known while a read is under way that does not contain it. A read is therefore announced, and
    cached only if no change of the integration became known meanwhile.

    An entry that is used after a part of its `ttl` is to be renewed (`take_due`). The part differs from entry to entry,
    so that what was read at one time does not have to be read again at one time.
    """

    def __init__(
        self,
        max_bytes: int,
        monotonic: Callable[[], float],
        *,
        ttl: timedelta = _TTL,
        max_staleness: timedelta = MAX_STALENESS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._entries: LRUCache[IntegrationId, _Entry] = LRUCache(max_bytes, getsizeof=attrgetter("size"))
        self._pending_reads: dict[IntegrationId, set[object]] = {}
        self._due: dict[IntegrationId, UserId] = {}
        self._monotonic = monotonic
        self._ttl = ttl.total_seconds()
        self._max_staleness = max_staleness.total_seconds()
        self._jitter = jitter
        self._fresh_until = monotonic()

    def get(self, integration_id: IntegrationId, user_id: UserId | None) -> StoredIntegration | None:
        """The user's integration (None: any user's), if it is cached and the feed is up to date.

        Another user's is not found here, like one that does not exist: the caller then asks the store in both cases, so
        that the time of a response does not tell them apart.
        """
        try:
            entry = self._entries[integration_id]  # LRUCache.get takes twice the time
        except KeyError:
            return None
        now = self._monotonic()
        if now >= self._fresh_until or now >= entry.expire_time:
            return None
        found = entry.found
        if user_id is not None and user_id != found.integration.user_id:
            return None
        if now >= entry.renew_time:
            self._due[integration_id] = found.integration.user_id
            entry.renew_time = now + _RENEWAL_INTERVAL
        return found

    def take_due(self) -> Sequence[tuple[IntegrationId, UserId]]:
        """The integrations whose entries are in use and would expire soon, since the last call."""
        due, self._due = self._due, {}
        return [target for target in due.items() if target[0] in self._entries]

    @property
    def size(self) -> int:
        """The memory that the entries take, in bytes."""
        return int(self._entries.currsize)

    def begin_read(self, integration_id: IntegrationId) -> object:
        """Announce a read of the store; returns its token."""
        read_token = object()
        self._pending_reads.setdefault(integration_id, set()).add(read_token)
        return read_token

    def is_pending(self, integration_id: IntegrationId, read_token: object) -> bool:
        """Whether no change of the integration became known since this read was announced."""
        return read_token in self._pending_reads.get(integration_id, ())

    def end_read(self, integration_id: IntegrationId, read_token: object, found: StoredIntegration | None) -> None:
        """Cache the result of a read, unless the integration changed since the read began."""
        pending = self._pending_reads.get(integration_id, set())
        if read_token not in pending:
            return
        pending.discard(read_token)
        if not pending:
            del self._pending_reads[integration_id]
        if found is not None:
            self._put(integration_id, found)

    def _put(self, integration_id: IntegrationId, found: StoredIntegration) -> None:
        size, now = _size_of(found), self._monotonic()
        if size > self._entries.maxsize:
            return
        previous = self._entries.get(integration_id)
        if previous is not None and previous.found == found:
            found = previous.found  # the very object, so that what was made from it stays valid
        if found.integration.refresh_failures or found.integration.refresh_retry_time is not None:
            ttl, renew_time = min(self._ttl, _FAILING_TTL), math.inf
        else:
            ttl, renew_time = self._ttl, now + self._ttl * (_RENEW_FROM + _RENEW_SPREAD * self._jitter())
        self._entries[integration_id] = _Entry(found, size, renew_time, now + ttl)

    def invalidate(self, integration_id: IntegrationId) -> None:
        """Drop an integration that changed, and any read of it."""
        self._entries.pop(integration_id, None)
        self._pending_reads.pop(integration_id, None)

    def apply_changes(self, integration_ids: Collection[IntegrationId] | None, poll_time: float) -> None:
        """Drop the integrations that changed (None: all), and serve until `MAX_STALENESS` after the poll."""
        if integration_ids is None:
            self._entries.clear()
            self._pending_reads.clear()
        for integration_id in integration_ids or ():
            self.invalidate(integration_id)
        self._fresh_until = poll_time + self._max_staleness


def _size_of(found: StoredIntegration) -> int:
    """The memory that an entry takes, in bytes: its objects, and for the config what its JSON can become."""
    integration = found.integration
    texts = [found.encrypted_credentials or b"", *_texts_of(integration), *integration.scopes]
    texts += integration.missing_scopes
    if integration.last_error is not None:
        texts += integration.last_error.error_class, integration.last_error.message
    config = _CONFIG_FACTOR * json_length(integration.config)
    return _ENTRY_BYTES + sum(map(getsizeof, texts)) + config


def json_length(config: Mapping[str, Any]) -> int:
    """The characters of a config in JSON."""
    return len(json.dumps(config)) if config else 0
