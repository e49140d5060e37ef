"""What a request passes before it gets to an endpoint: ids, probes, limits for anonymous clients, headers, access log.

Requests that prove nothing are limited by peer, and so are their lines in the log. Everybody can send a request to an
unknown path, to an unknown webhook address, or with a forged state. Such requests are counted as failures, and a peer
with too many gets 429 before anything else is done. Never limited are

- webhooks to an address at which the same peer has delivered a verified one, so that nobody can stop a provider's
  deliveries with failures from the provider's own addresses,
- probes, which come before the limits, so that they are cheap.

Limits on times, connections and sizes of heads are enforced below the app, in `http_protocol.py`.
"""

import asyncio
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from http import HTTPStatus
from urllib.parse import quote

import grpc.aio
import structlog
from cachetools import TTLCache
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.domain.peers import LogLimiter, PeerLimiter, TrustedProxies, peer_key
from integration_server.logs import AnyAccessLog
from integration_server.observability.observed_calls import REQUEST_ID, TRACEPARENT, CallIdReader, current_ids
from integration_server.sidecar.error_mapping import INTERNAL_ERROR, HttpError
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_limits import HttpLimits

RecordRequest = Callable[[float, str, str], object]
"""Records a request: its seconds, its route, and its status or 0 if the client has gone before the response."""

MakeError = Callable[[Request, HttpError], Response]
"""Makes the response for an error, and notes its reason."""

MALFORMED = "malformed"
"""The route of a request that the parser or a limit refused, of which nothing is known."""

LIVE_PATH, READY_PATH = "/healthz", "/readyz"

# Seconds. The server responds from memory, and a prober has a deadline of its own and retries soon.
_PROBE_DEADLINE = 1.0

_VERIFIED_TTL = timedelta(days=1).total_seconds()  # many accounts have a webhook or more on a working day
_MAX_UNTRUSTED = 100  # proxies
_WARNING_INTERVAL = timedelta(hours=1).total_seconds()
_MAX_VERIFIED = 10_000  # pairs of peer and path; each has once delivered a verified webhook
_VERIFIED, _REASON = "verified", "reason"  # names in the state of a request

# The server itself fails, or is full. The client may have done nothing wrong.
_NOT_THE_PEERS_FAULT = frozenset({HTTPStatus.TOO_MANY_REQUESTS, *(status for status in HTTPStatus if status >= 500)})
_TOO_MANY_FAILURES = HttpError(
    HTTPStatus.TOO_MANY_REQUESTS, "QUOTA_EXCEEDED", "Too many requests from this address failed"
)

_ID_HEADERS = {name.encode(): name for name in (REQUEST_ID, TRACEPARENT)}
_ID_HEADER = REQUEST_ID.encode()


# --- ids --------------------------------------------------------------------------------------------------------------


class IdentifiedApp:
    """An app whose requests have ids, which its log lines and its calls to the server have too."""

    def __init__(self, app: ASGIApp, reader: CallIdReader) -> None:
        self._app = app
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        ids = self._reader.read(
            [(_ID_HEADERS[name], value.decode("latin-1")) for name, value in scope["headers"] if name in _ID_HEADERS]
        )
        header = (_ID_HEADER, ids.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The app's own responses have none; those to webhooks have headers that a provider's type declares.
                others = [header for header in message.get("headers", ()) if header[0] != _ID_HEADER]
                message = {**message, "headers": [*others, header]}
            await send(message)

        # The connection's next request may run in the same context.
        token = current_ids.set(ids)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            current_ids.reset(token)


# --- probes ----------------------------------------------------------------------------------------------------------


class Readiness:
    """Whether the gRPC server serves, and this process is not `draining`.

    What the server reported may be `max_age` old, and all who wait for a report share it.
    """

    def __init__(
        self,
        server: ServerClient,
        max_age: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        draining: asyncio.Event | None = None,
    ) -> None:
        self._server = server
        self._max_age = max_age.total_seconds()
        self._monotonic = monotonic
        self._check: asyncio.Task[bool] | None = None
        self._check_time = 0.0
        self._draining = draining or asyncio.Event()

    async def is_ready(self) -> bool:
        """Whether it serves."""
        is_old = self._monotonic() - self._check_time >= self._max_age
        if self._check is None or (self._check.done() and is_old):
            self._check = asyncio.create_task(self._ask())
            self._check_time = self._monotonic()
        return await asyncio.shield(self._check) and not self._draining.is_set()

    async def _ask(self) -> bool:
        try:
            health = await self._server.check_health(HealthCheckRequest(service=""), timeout=_PROBE_DEADLINE)
        except grpc.aio.AioRpcError:
            return False
        return bool(health.status == HealthCheckResponse.SERVING)


class Probes:
    """Responds to the probes of an orchestrator or a load balancer; other requests go to the app."""

    def __init__(
        self,
        app: ASGIApp,
        readiness: Readiness,
        headers: Mapping[str, str],
        log_failure: Callable[[Scope, int], object] = lambda _scope, _status: None,
    ) -> None:
        self._app = app
        self._readiness = readiness
        self._log_failure = log_failure
        text = {"Content-Type": "text/plain; charset=utf-8"}
        self._headers = [(name.lower().encode(), value.encode()) for name, value in {**headers, **text}.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to GET and HEAD of a probe's path."""
        if scope["path"] not in (LIVE_PATH, READY_PATH) or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        # Liveness depends on this process only, because a restart would repair nothing else.
        elif scope["path"] == LIVE_PATH or await self._readiness.is_ready():
            await self._respond(scope, send, HTTPStatus.OK, b"ok")
        else:
            await self._respond(scope, send, HTTPStatus.SERVICE_UNAVAILABLE, b"not ready")
            self._log_failure(scope, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _respond(self, scope: Scope, send: Send, status: HTTPStatus, body: bytes) -> None:
        headers = [*self._headers, (b"content-length", str(len(body)).encode())]
        if announces_body(scope):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


# --- what is known about a request -----------------------------------------------------------------------------------


def mark_verified(scope: Scope) -> None:
    """Record that a request has proven that it comes from a provider or from a user's authorization attempt."""
    scope.setdefault("state", {})[_VERIFIED] = True


def is_verified(scope: Scope) -> bool:
    """Whether `mark_verified` was called for a request."""
    return bool(scope.get("state", {}).get(_VERIFIED))


def note_reason(scope: Scope, reason: str) -> None:
    """Note why a request fails, for the log."""
    scope.setdefault("state", {})[_REASON] = reason


def reason_of(scope: Scope) -> str:
    """The reason that `note_reason` was called with; empty for none."""
    return str(scope.get("state", {}).get(_REASON, ""))


# --- limits for anonymous clients ------------------------------------------------------------------------------------


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
    """The sender of a request, and its destination."""

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
        self,
        limits: HttpLimits,
        proxies: TrustedProxies,
        monotonic: Callable[[], float] = time.monotonic,
        record_refusal: Callable[[int], object] = lambda _status: None,
    ) -> None:
        self._record_refusal = record_refusal
        self._proxies = proxies
        self._failures = PeerLimiter(
            burst=limits.failure_burst, per_second=limits.failures_per_second, monotonic=monotonic
        )
        self._verified: TTLCache[tuple[str, str], None] = TTLCache(_MAX_VERIFIED, _VERIFIED_TTL, monotonic)
        self._untrusted: TTLCache[str, None] = TTLCache(_MAX_UNTRUSTED, _WARNING_INTERVAL, monotonic)
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
            self._warn_of_untrusted_proxy(scope)
            # Not so a callback: every user of an app has a valid state, and could then send forged ones.
            if sender.area is Area.WEBHOOKS:
                self._failures.forgive(sender.key)
                self._verified[sender.peer, sender.path] = None
            return
        self._log_failure(sender, scope["method"], status, reason_of(scope))
        if status not in _NOT_THE_PEERS_FAULT:
            self._failures.record_failure(sender.key)

    def _warn_of_untrusted_proxy(self, scope: Scope) -> None:
        """A request that is genuine, and whose sender a proxy names that is not trusted: all clients look like one."""
        host = scope["client"][0] if scope.get("client") else ""
        if "x-forwarded-for" in Headers(scope=scope) and not self.is_proxy(host) and host not in self._untrusted:
            self._untrusted[host] = None
            self._log.warning("proxy_not_trusted", peer=host, setting="TRUSTED_PROXIES")

    def record_refusal(self, peer: str, status: HTTPStatus) -> None:
        """Log a request that the parser or a limit refused, of which nothing is known but its peer."""
        self._record_refusal(status)
        self._log_failure(Sender(peer), "", status)

    def log_failure(self, scope: Scope, status: int) -> None:
        """Log a request that failed, and that nobody limits."""
        self._log_failure(self.sender_of(scope), scope["method"], status)

    def _log_failure(self, sender: Sender, method: str, status: int, reason: str = "") -> None:
        """One line for each peer and minute, with the number of failures that had none."""
        suppressed = self._log_limiter.admit(sender.peer)
        if suppressed is not None:
            # Quoted, so that a path cannot add lines to the log.
            path = quote(sender.path)[:200]
            fields = {"peer": sender.peer, "method": method, "path": path, "status": status, "reason": reason}
            self._log.info("http_request_unverified", **fields, suppressed=suppressed)


# --- metrics ---------------------------------------------------------------------------------------------------------


class RecordedApp:
    """An app whose requests are recorded by their route. A path is never recorded: anybody chooses it."""

    def __init__(self, app: ASGIApp, record: RecordRequest) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        begin, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._record(time.perf_counter() - begin, route_of(scope["path"]), str(status))


def route_of(path: str) -> str:
    """`callback`, `webhooks`, `other`, or the path of a probe."""
    return path if path in (LIVE_PATH, READY_PATH) else Area.of(path).name.lower()


# --- every other request ---------------------------------------------------------------------------------------------


class OuterMiddleware:
    """Refuses senders with too many failures, sets headers on every response, and converts exceptions to 500."""

    def __init__(
        self,
        app: ASGIApp,
        make_error: MakeError,
        headers: Mapping[str, str],
        anonymous: AnonymousLimits,
        access_log: AnyAccessLog | None = None,
    ) -> None:
        self._access_log = access_log
        self._app = app
        self._make_error = make_error
        self._headers = {name.lower().encode(): value.encode() for name, value in headers.items()}
        self._anonymous = anonymous
        self._log = structlog.get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        exchange = _Exchange(scope, receive, send, self._headers)
        sender = self._anonymous.sender_of(scope)
        retry_after = self._anonymous.retry_after(sender)
        try:
            if retry_after is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await self._refuse(scope, exchange, retry_after)
        except ClientDisconnect:
            pass  # in the middle of the body
        except Exception as error:
            # The text of an exception may quote secrets, so only its class and traceback are logged.
            stack = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("unhandled_exception", kind=type(error).__qualname__, stack=stack)
            if not exchange.status:
                response = self._make_error(Request(scope), INTERNAL_ERROR)
                await response(scope, exchange.receive, exchange.send)
        finally:
            self._anonymous.record(sender, scope, exchange.status)
            if self._access_log is not None and is_verified(scope):
                path, outcome = quote(scope["path"])[:200], (exchange.status, reason_of(scope))
                seconds = time.perf_counter() - exchange.begin
                self._access_log.http(scope["method"], path, *outcome, seconds, sender.peer, current_ids.get())

    async def _refuse(self, scope: Scope, exchange: "_Exchange", retry_after: timedelta) -> None:
        response = self._make_error(Request(scope), _TOO_MANY_FAILURES)
        response.headers["Retry-After"] = str(math.ceil(retry_after.total_seconds()))
        await response(scope, exchange.receive, exchange.send)


def security_headers(policy: str) -> Mapping[str, str]:
    """Headers for every response. URLs here contain codes and states, which must not be stored or forwarded."""
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Vary": "Accept, Sec-Purpose, Purpose, X-Purpose, X-Moz",
    }


def announces_body(scope: Scope) -> bool:
    """Whether the head of a request says that a body follows."""
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


class _Exchange:
    """One request, from `begin` on, and its response. `status` is 0 until the response has started."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[bytes, bytes]) -> None:
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = headers
        self._has_unread_body = announces_body(scope)
        self.begin = time.perf_counter()

    async def receive(self) -> Message:
        """Receive a message from the client."""
        message = await self._receive()
        self._has_unread_body = self._has_unread_body and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message. A response before the body has been read closes the connection, so that it need not be."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = {**self._headers, b"connection": b"close"} if self._has_unread_body else self._headers
            own = [header for header in message.get("headers", ()) if header[0] not in headers]
            message = {**message, "headers": [*own, *headers.items()]}
        await self._send(message)
