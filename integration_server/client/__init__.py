"""The client of the Integration Server: credentials that stay fresh in the process, and the server's functions.

It needs grpcio, protobuf and googleapis-common-protos, and imports nothing of the server.
"""

from integration_server.client.aio import AsyncAccount, AsyncConnection, AsyncIntegrations, AsyncStreamedResponse
from integration_server.client.blocking import Account, Connection, Integrations, StreamedResponse
from integration_server.client.configuration import ConfigurationError
from integration_server.client.credentials import AsyncCredentialSource, Credentials, CredentialSource
from integration_server.client.errors import IntegrationsError
from integration_server.client.hooks import CallHook, OpenTelemetryHook
from integration_server.client.values import (
    ApiResponse,
    AsyncCursorStore,
    CallbackResult,
    CursorStore,
    FileCursorStore,
    MemoryCursorStore,
    WebhookEvent,
    WebhookSecret,
)

__all__ = [
    "Account",
    "ApiResponse",
    "AsyncAccount",
    "AsyncConnection",
    "AsyncCredentialSource",
    "AsyncCursorStore",
    "AsyncIntegrations",
    "AsyncStreamedResponse",
    "CallHook",
    "CallbackResult",
    "ConfigurationError",
    "Connection",
    "CredentialSource",
    "Credentials",
    "CursorStore",
    "FileCursorStore",
    "Integrations",
    "IntegrationsError",
    "MemoryCursorStore",
    "OpenTelemetryHook",
    "StreamedResponse",
    "WebhookEvent",
    "WebhookSecret",
]
