"""The limits of the HTTP server (docs/limits.md)."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The resources that clients can take. A connection is closed when a phase of a request exceeds its time: head,
    body, or response (made and read)."""

    connections: int
    body_bytes: int
    header_timeout: timedelta
    body_timeout: timedelta
    # In whole seconds. Must exceed the time for which clients keep idle connections (load balancers: 60 s), or a
    # request is sent into a connection that is being closed.
    keepalive_timeout: timedelta
    # Longer than callback.DEADLINE.
    response_timeout: timedelta = timedelta(seconds=60)
    # For a client to read the response to a request that is not read to its end. Longer than a round trip.
    linger_timeout: timedelta = timedelta(seconds=2)
    head_bytes: int = 16 * 1024
    headers: int = 100
    url_bytes: int = 10 * 1024
    # Parsing a chunk costs 10 µs, whatever its size. Besides this number a body may have a chunk for each KiB; proxies
    # make one of each TCP segment.
    chunks: int = 1024
    # In bodies of the largest size. A request whose body would exceed the sum gets 503 with Retry-After.
    max_buffered_bodies: int = 64
    # The share of the connections that one peer can have: half, because a load balancer is one peer.
    peer_share: float = 0.5
    # Failed requests of one peer: a minute's worth at once, as a scanner or a page that reloads sends them, and then
    # this rate. A person or a provider fails a few times in an hour.
    failures_per_second: float = 1.0
    # Between a probe, or a request that failed, and the next request of the same connection.
    request_interval: timedelta = timedelta(seconds=0.5)
    # Probers ask at intervals of at least a second.
    readiness_max_age: timedelta = timedelta(seconds=0.5)
    # Off only for negative controls.
    refuse_ambiguous: bool = True
    refuse_speculative: bool = True

    @property
    def failure_burst(self) -> int:
        """Failed requests of one peer at once."""
        return max(1, round(60 * self.failures_per_second))

    @property
    def peer_connections(self) -> int:
        """Connections of one peer."""
        return max(1, int(self.connections * self.peer_share))
