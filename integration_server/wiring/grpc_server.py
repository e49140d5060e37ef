"""Builds the gRPC server: its services, their interceptors and its limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from integration_server.lifecycle import GrpcLimits, cap_to_fd_limit
from integration_server.rpc.audit import record_audit
from integration_server.rpc.authorization import caller_name, quota_key
from integration_server.rpc.google_calendar import GoogleCalendarService
from integration_server.rpc.health import ServerHealthServicer
from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.interceptors import (
    HandlerRecorder,
    Interceptor,
    ProtectedHandlers,
    convert_errors,
    enforce_deadline,
    enforce_quota,
    peer_address,
    read_request,
)
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.common_types import Clock
from integration_server.settings import Settings
from integration_server.wiring.auth import AuthStack
from integrations.v1 import (
    google_calendar_pb2,
    google_calendar_pb2_grpc,
    integration_service_pb2,
    integration_service_pb2_grpc,
)

SERVICE_NAME = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
CALENDARS_NAME = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"].full_name
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


@dataclass(frozen=True, slots=True)
class Servicers:
    """The implementations of the services."""

    integrations: IntegrationService
    google_calendar: GoogleCalendarService
    health: ServerHealthServicer


def build_grpc_server(
    settings: Settings, servicers: Servicers, auth: AuthStack, trail: AuditTrail, clock: Clock
) -> grpc.aio.Server:
    """Build the server. In dev mode, or where callers are authenticated, it has reflection (grpcurl uses it)."""
    recorder = HandlerRecorder()
    target: Any = recorder  # the generated functions are typed for servers
    integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server(servicers.integrations, target)
    google_calendar_pb2_grpc.add_GoogleCalendarServiceServicer_to_server(servicers.google_calendar, target)
    health_pb2_grpc.add_HealthServicer_to_server(servicers.health, target)
    # Where callers are authenticated, the policy decides who may use reflection.
    if settings.dev_mode or settings.authenticates_callers:
        names = (SERVICE_NAME, CALENDARS_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        # `enable_server_reflection` adds the threaded servicer to any server but grpc.aio's own.
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), target)
    server = grpc.aio.server(options=grpc_limits_of(settings).options())
    server.add_generic_rpc_handlers([_protect_handlers(settings, recorder, auth, trail, clock)])
    return server


def _protect_handlers(
    settings: Settings, recorder: HandlerRecorder, auth: AuthStack, trail: AuditTrail, clock: Clock
) -> ProtectedHandlers:
    """Compose the interceptors, the outermost first, around the recorded handlers."""
    convert = convert_errors(caller_name)
    interceptors: Sequence[Interceptor] = (
        convert,
        *auth.authenticate,
        *auth.authorize_method,
        enforce_quota(
            quota_key if auth.authenticate else peer_address,
            concurrency=settings.caller_max_concurrency,
            per_second=settings.caller_max_calls_per_second,
        ),
        read_request(settings.grpc_read_timeout),
        enforce_deadline(),
        *auth.authorize_request,
        record_audit(trail, caller_name if auth.authenticate else peer_address, clock),
    )
    return ProtectedHandlers(recorder, interceptors, unknown_method=(convert, *auth.authenticate))


def grpc_limits_of(settings: Settings) -> GrpcLimits:
    """Return the limits of the gRPC server. Its connections use at most half of the open files."""
    return GrpcLimits(
        connections=cap_to_fd_limit(settings.grpc_max_connections, 1 / 2, setting="GRPC_MAX_CONNECTIONS"),
        streams_per_connection=settings.grpc_max_streams_per_connection,
        message_bytes=settings.grpc_max_message_bytes,
        metadata_bytes=settings.grpc_max_metadata_bytes,
        handshake=settings.grpc_handshake,
        connection_idle=settings.grpc_connection_idle,
        connection_age=settings.grpc_connection_age,
    )
