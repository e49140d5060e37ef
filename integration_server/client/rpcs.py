"""The RPCs that the client calls: their deadlines, which of them are repeated, and the channel's service config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import operator_service_pb2 as operator_pb

SERVICE = "integrations.v1.IntegrationService"
OPERATOR_SERVICE = "integrations.v1.OperatorService"

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[RequestT, ResponseT]):
    """A method of the contract. `timeout` is the default deadline in seconds; None for streams.

    gRPC itself repeats an idempotent RPC that has failed with UNAVAILABLE.
    """

    name: str
    request: type[RequestT]
    response: type[ResponseT]
    timeout: float | None
    is_idempotent: bool = False
    service: str = SERVICE

    @property
    def path(self) -> str:
        """The method's path in gRPC."""
        return f"/{self.service}/{self.name}"


# Reads of the server's own database. Ten seconds cover a failover of the database.
LIST_INTEGRATIONS = Rpc("ListIntegrations", pb.ListIntegrationsRequest, pb.ListIntegrationsResponse, 10, True)
GET_INTEGRATION = Rpc("GetIntegration", pb.GetIntegrationRequest, pb.GetIntegrationResponse, 10, True)
LIST_TYPES = Rpc("ListIntegrationTypes", pb.ListIntegrationTypesRequest, pb.ListIntegrationTypesResponse, 10, True)
LIST_HEALTH_CHECKS = Rpc("ListHealthChecks", pb.ListHealthChecksRequest, pb.ListHealthChecksResponse, 10, True)
LIST_WEBHOOK_EVENTS = Rpc("ListWebhookEvents", pb.ListWebhookEventsRequest, pb.ListWebhookEventsResponse, 10, True)
ACK_WEBHOOK_EVENTS = Rpc("AckWebhookEvents", pb.AckWebhookEventsRequest, pb.AckWebhookEventsResponse, 10, True)
GET_WEBHOOK_ENDPOINT = Rpc("GetWebhookEndpoint", pb.GetWebhookEndpointRequest, pb.GetWebhookEndpointResponse, 10, True)
UPDATE_INTEGRATION = Rpc("UpdateIntegration", pb.UpdateIntegrationRequest, pb.UpdateIntegrationResponse, 10)
SET_WEBHOOK_SECRET = Rpc("SetWebhookSecret", pb.SetWebhookSecretRequest, pb.SetWebhookSecretResponse, 10)
# The server may ask a provider first, and waits for it for ten seconds (PROVIDER_TIMEOUT_SECONDS), sometimes twice.
GET_CREDENTIALS = Rpc("GetCredentials", pb.GetCredentialsRequest, pb.GetCredentialsResponse, 30, True)
# Three quarters of it are for refreshes.
BATCH_GET_CREDENTIALS = Rpc(
    "BatchGetCredentials", pb.BatchGetCredentialsRequest, pb.BatchGetCredentialsResponse, 40, True
)
CONNECT = Rpc("Connect", pb.ConnectRequest, pb.ConnectResponse, 30)
CONNECT_WITH_API_KEY = Rpc("ConnectWithApiKey", pb.ConnectWithApiKeyRequest, pb.ConnectWithApiKeyResponse, 30)
HANDLE_CALLBACK = Rpc("HandleCallback", pb.HandleCallbackRequest, pb.HandleCallbackResponse, 30, True)
CONFIRM = Rpc("ConfirmConnection", pb.ConfirmConnectionRequest, pb.ConfirmConnectionResponse, 30)
DISCONNECT = Rpc("DisconnectIntegration", pb.DisconnectIntegrationRequest, pb.DisconnectIntegrationResponse, 30)
CHECK_HEALTH = Rpc("CheckHealth", pb.CheckHealthRequest, pb.CheckHealthResponse, 30, True)
CHECK_ALL_HEALTH = Rpc("CheckAllHealth", pb.CheckAllHealthRequest, pb.CheckAllHealthResponse, 60, True)
REFRESH_TOKEN = Rpc("RefreshToken", pb.RefreshTokenRequest, pb.RefreshTokenResponse, 30)
# The server's own default (PROXY_TIMEOUT_SECONDS). It repeats what may be repeated by itself.
CALL_PROVIDER = Rpc("CallProvider", pb.CallProviderRequest, pb.CallProviderResponse, 30)
# A transfer has no deadline: the server ends one that stands still.
STREAM_PROVIDER = Rpc("StreamProvider", pb.StreamProviderRequest, pb.StreamProviderResponse, None)
WATCH_INTEGRATIONS = Rpc("WatchIntegrations", pb.WatchIntegrationsRequest, pb.WatchIntegrationsResponse, None)
WATCH_CREDENTIALS = Rpc("WatchCredentials", pb.WatchCredentialsRequest, pb.WatchCredentialsResponse, None)
LIST_UNROUTED_WEBHOOKS = Rpc(
    "ListUnroutedWebhooks",
    operator_pb.ListUnroutedWebhooksRequest,
    operator_pb.ListUnroutedWebhooksResponse,
    10,
    True,
    OPERATOR_SERVICE,
)
LIST_OAUTH_CLIENTS = Rpc(
    "ListOAuthClients",
    operator_pb.ListOAuthClientsRequest,
    operator_pb.ListOAuthClientsResponse,
    10,
    True,
    OPERATOR_SERVICE,
)
FIND_INTEGRATIONS = Rpc(
    "FindIntegrations",
    operator_pb.FindIntegrationsRequest,
    operator_pb.FindIntegrationsResponse,
    10,
    True,
    OPERATOR_SERVICE,
)
LIST_DUE_WORK = Rpc(
    "ListDueWork", operator_pb.ListDueWorkRequest, operator_pb.ListDueWorkResponse, 10, True, OPERATOR_SERVICE
)
LIST_AUDIT_ENTRIES = Rpc(
    "ListAuditEntries",
    operator_pb.ListAuditEntriesRequest,
    operator_pb.ListAuditEntriesResponse,
    10,
    True,
    OPERATOR_SERVICE,
)

RPCS: Sequence[Rpc[Message, Message]] = tuple(value for value in vars().values() if isinstance(value, Rpc))


def service_config() -> str:
    """Return the channel's service config (https://grpc.io/docs/guides/service-config/) as JSON.

    It has no timeouts: gRPC would cut the longer deadline of a caller down to them. The table above has the defaults.
    """
    retry_policy = {
        "maxAttempts": 5,  # gRPC's own maximum
        "initialBackoff": "0.2s",  # with jitter, about three seconds altogether: a server restarts within one
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": rpc.service, "method": rpc.name} for rpc in RPCS if rpc.is_idempotent]
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],  # over all addresses of a DNS name
        "methodConfig": [{"name": names, "retryPolicy": retry_policy}],
    }
    return json.dumps(config)
