"""Builds the gRPC server: its services, their interceptors and its limits."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from integration_server.domain.call_quota import CallQuota, CallRate
from integration_server.domain.callers import current_caller
from integration_server.domain.integration import Integration
from integration_server.domain.peers import TrustedProxies
from integration_server.domain.request_limits import MAX_BYTES
from integration_server.lifecycle import cap_to_fd_limit
from integration_server.logs import AnyAccessLog
from integration_server.observability.observed_calls import CallIdReader, ObservedCalls, TracedCalls
from integration_server.observability.spans import Tracing
from integration_server.redaction import redact_text
from integration_server.rpc.authentication import caller_name, caller_or_address, client_address, quota_key_or_peer
from integration_server.rpc.call_audit import record_audit
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.credential_results import CredentialResults
from integration_server.rpc.google_calendar import GoogleCalendarService
from integration_server.rpc.health import ServerHealthServicer
from integration_server.rpc.hot_path import CallerNames, HotPath, PathInterceptors, ReusedResponses
from integration_server.rpc.integration_service import IntegrationService, UseCases
from integration_server.rpc.interceptors import (
    RecordCall,
    RequestReader,
    convert_errors,
    count_items,
    enforce_deadline,
    enforce_quota,
    read_request,
)
from integration_server.rpc.methods import Interceptor
from integration_server.rpc.operator_service import OperatorService
from integration_server.rpc.server import ProtectedHandlers, create_server
from integration_server.rpc.stream_limits import limit_streams, write_in_time
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.calendar.google_calendar import GoogleCalendar
from integration_server.service.common_types import Clock
from integration_server.settings import Settings
from integration_server.wiring.auth import AuthStack
from integration_server.wiring.workers import Worker
from integrations.v1 import (
    google_calendar_pb2,
    google_calendar_pb2_grpc,
    integration_service_pb2,
    integration_service_pb2_grpc,
    operator_service_pb2,
    operator_service_pb2_grpc,
)

SERVICE_NAMES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (integration_service_pb2, "IntegrationService"),
        (google_calendar_pb2, "GoogleCalendarService"),
        (operator_service_pb2, "OperatorService"),
    )
)
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

# Of one method, over all connections, at 16 kB each: as many as a caller may have at the same time.
_MAX_PENDING_CALLS = 2_000


def build_grpc_server(
    settings: Settings,
    use_cases: UseCases,
    google_calendar: GoogleCalendar,
    health: ServerHealthServicer,
    auth: AuthStack,
    trail: AuditTrail,
    clock: Clock,
    call_log: CallLog,
    record: RecordCall = lambda *_: None,
    is_current: Callable[[Integration], bool] | None = None,
    worker: Worker | None = None,
    usable_keys: Callable[[], object] = lambda: None,
    access_log: AnyAccessLog | None = None,
    tracing: Tracing | None = None,
) -> grpc.aio.Server:
    """Build the server. `worker` is None for one process.

    `is_current` is that of the integration cache, if there is one, and `usable_keys` that of the keyring: see
    `ReusedResponses`.

    Without `access_log` no call has a line in it, and without `tracing` none has a span. In dev mode, or where callers
    are authenticated, it has reflection (grpcurl uses it).
    """
    worker = worker or Worker()
    address_of = client_address(TrustedProxies(settings.trusted_proxies))
    audited_caller = caller_or_address(address_of)
    caller_of = quota_key_or_peer(address_of)
    responses = is_current and ReusedResponses(
        is_current,
        audited_caller,
        current_caller,
        usable_keys,
        trail.queue,
        clock,
        max_bytes=settings.credentials_cache_size // 2,
    )
    rate = CallRate(
        settings.caller_max_calls_per_second,
        worker.counts,
        # All that a caller may watch can be resumed at once: after a restart of the server it is.
        max_resumed=settings.caller_max_watched_integrations,
    )
    concurrency = settings.caller_max_concurrency
    reader = RequestReader(settings.grpc_read_timeout)
    observe = ObservedCalls if tracing is None else partial(TracedCalls, tracing)
    calls = observe(
        CallIdReader(partial(redact_text, escape=str)),
        None if access_log is None else access_log.rpc,
        caller_name,
        is_known=lambda context: auth.basis is None or bool(caller_name(context)),
    )
    convert = convert_errors(caller_name, call_log, address_of, record, calls)
    # The outermost first.
    admit: Sequence[Interceptor] = (
        write_in_time(settings.proxy_stream_idle_timeout),
        *auth.authenticate,
        *auth.authorize_method,
        enforce_quota(caller_of, rate, concurrency=concurrency),
    )
    process: Sequence[Interceptor] = (
        count_items(caller_of, rate),
        enforce_deadline(),
        *auth.authorize_request,
        limit_streams(
            caller_of,
            per_caller=settings.caller_max_streams,
            per_user=settings.caller_max_streams_per_user,
            watched_per_caller=settings.caller_max_watched_integrations,
            counts=worker.counts,
        ),
        record_audit(trail, audited_caller, clock),
    )
    hot_path = (
        None
        if responses is None
        else HotPath(
            PathInterceptors(convert, admit, process),
            CallerNames(audited_caller, caller_of, address_of, auth.basis),
            CallQuota(rate, concurrency=concurrency),
            reader,
            responses,
            clock,
            record,
            calls,
        )
    )
    handlers = ProtectedHandlers(
        (convert, *admit, read_request(reader), *process),
        unknown_method=(convert, *auth.authenticate),
        hot_path=hot_path,
    )
    target: Any = handlers  # the generated functions are typed for servers
    results = CredentialResults(
        use_cases.credentials, max_bytes=settings.grpc_max_message_bytes, responses=responses, call_log=call_log
    )
    service = IntegrationService(use_cases, clock, results)
    integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server(service, target)
    google_calendar_pb2_grpc.add_GoogleCalendarServiceServicer_to_server(GoogleCalendarService(google_calendar), target)
    operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(OperatorService(use_cases, clock), target)
    health_pb2_grpc.add_HealthServicer_to_server(health, target)
    # Where callers are authenticated, the policy decides who may use reflection.
    if settings.dev_mode or settings.authenticates_callers:
        names = (*SERVICE_NAMES, HEALTH_NAME, reflection.SERVICE_NAME)
        # `enable_server_reflection` adds the threaded servicer to any server but grpc.aio's own.
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), target)
    return create_server(handlers, handlers.paths, grpc_options(settings, shares_port=worker.count > 1))


def grpc_options(settings: Settings, *, shares_port: bool = False) -> Sequence[tuple[str, int]]:
    """Return the limits as gRPC channel arguments (grpc/impl/channel_arg_names.h). docs/limits.md describes them.

    Connections use at most half of the open files. Workers share their port (`shares_port`), which their supervisor has
    claimed.
    """
    return (
        # By default, a second, unrelated server on the same address silently gets half of the connections.
        ("grpc.so_reuseport", int(shares_port)),
        (
            "grpc.max_allowed_incoming_connections",
            cap_to_fd_limit(settings.grpc_max_connections, 1 / 2, setting="GRPC_MAX_CONNECTIONS"),
        ),
        ("grpc.max_concurrent_streams", settings.grpc_max_streams_per_connection),
        # Off: it counts streams that have just ended, and so rejects most of a burst that gRPC's own client queues.
        # Against streams that are opened and reset without end (CVE-2023-44487), the next two limits bound the calls
        # that have arrived and that this process has not started. gRPC drops those that are reset meanwhile without
        # any work of ours; one that has been started costs a third of a millisecond (docs/limits.md).
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.max_receive_message_length", _max_request_bytes(settings)),
        ("grpc.max_send_message_length", settings.grpc_max_message_bytes),
        # Between a soft and a hard limit, gRPC rejects calls at random.
        ("grpc.max_metadata_size", settings.grpc_max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.grpc_max_metadata_bytes),
        # From accepting a connection to the client's HTTP/2 settings.
        ("grpc.server_handshake_timeout_ms", _milliseconds(settings.grpc_handshake)),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.grpc_connection_idle)),
        ("grpc.max_connection_age_ms", _milliseconds(settings.grpc_connection_age)),
        # A transfer cannot be resumed: 1 GiB takes an hour at 300 kB/s. Clients of other streams reconnect.
        ("grpc.max_connection_age_grace_ms", 3_600_000),
        # Detects a client that has disappeared within 80 seconds.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ping every ten seconds, also between calls; more frequent pings close the connection.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    )


def _max_request_bytes(settings: Settings) -> int:
    """Return the size of the largest request: one with a body. gRPC decompresses no more than that."""
    body = max(settings.proxy_max_request_bytes, settings.sidecar_max_body_bytes)
    return min(settings.grpc_max_message_bytes, body + MAX_BYTES)


def _milliseconds(time: timedelta) -> int:
    return max(1, round(time.total_seconds() * 1000))
