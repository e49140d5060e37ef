"""The gRPC server, as the settings want it."""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from integration_server.lifecycle import GrpcLimits, cap_to_fd_limit
from integration_server.rpc.audit import AuditInterceptor
from integration_server.rpc.authentication import caller_of, quota_key
from integration_server.rpc.deadlines import DeadlineInterceptor
from integration_server.rpc.errors import ErrorInterceptor
from integration_server.rpc.google_calendar import GoogleCalendarService
from integration_server.rpc.health import ServerHealthServicer
from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.interceptors import CachedInterceptorChain
from integration_server.rpc.quotas import Quotas, peer_address
from integration_server.rpc.request_reader import RequestReader
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
    """What answers calls."""

    integrations: IntegrationService
    google_calendar: GoogleCalendarService
    health: ServerHealthServicer


def build_grpc_server(
    settings: Settings,
    servicers: Servicers,
    auth: AuthStack,
    trail: AuditTrail,
    clock: Clock,
) -> grpc.aio.Server:
    """The server with its services; where it may be, with reflection, so that grpcurl and the like can explore it."""
    limits = Quotas(
        quota_key if auth.authentication else peer_address,
        concurrency=settings.caller_max_concurrency,
        per_second=settings.caller_max_calls_per_second,
    )
    interceptors = CachedInterceptorChain(
        ErrorInterceptor(),
        *auth.authentication,
        limits,
        RequestReader(timeout=settings.grpc_read_timeout),
        DeadlineInterceptor(),
        *auth.authorization,
        AuditInterceptor(trail, caller_of if auth.authentication else peer_address, clock),
    )
    server = grpc.aio.server(
        interceptors=[interceptors],
        options=grpc_limits_of(settings).options(),
    )
    integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server(servicers.integrations, server)
    google_calendar_pb2_grpc.add_GoogleCalendarServiceServicer_to_server(servicers.google_calendar, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicers.health, server)
    # Behind a guard the policy says who may explore the server.
    if settings.dev_mode or settings.authenticates_callers:
        names = (SERVICE_NAME, CALENDARS_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def grpc_limits_of(settings: Settings) -> GrpcLimits:
    """What clients can take of the gRPC server: half of the open files at most."""
    return GrpcLimits(
        connections=cap_to_fd_limit(settings.grpc_max_connections, 1 / 2, setting="GRPC_MAX_CONNECTIONS"),
        streams_per_connection=settings.grpc_max_streams_per_connection,
        message_bytes=settings.grpc_max_message_bytes,
        metadata_bytes=settings.grpc_max_metadata_bytes,
        handshake=settings.grpc_handshake,
        connection_idle=settings.grpc_connection_idle,
        connection_age=settings.grpc_connection_age,
    )
