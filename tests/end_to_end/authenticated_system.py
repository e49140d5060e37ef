"""A whole system with authentication: mutual TLS, tokens of services and of users, and a policy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509

from integration_server.dev import replace_google_calendar
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.system import CONFIRMING, ShiftedClock, System, query_of, run_system
from tests.signed_webhook_provider import APP_SECRET_SETTING, register_signed_webhook_provider
from tests.tokens import TokenIssuer
from tools.certificates import SERVER, Authority, Pair

TRUST_DOMAIN = "spiffe://integrations.example"

APP_SECRET = "the secret of the app's own webhooks"

POLICY = f"""
[users]
permissions = ["read", "connect", "manage", "check", "callbacks", "watch"]
integration_types = ["*"]

[sidecar]
certificates = ["{TRUST_DOMAIN}/sidecar"]

[services.backend]
certificates = ["{TRUST_DOMAIN}/backend"]
tokens = ["backend"]
permissions = ["read", "connect", "manage", "check", "credentials", "calls", "callbacks", "watch", "webhooks",
  "operate", "health", "reflection"]
integration_types = ["*"]

[services.other_type]
certificates = ["other-type.integrations.example"]
permissions = ["read", "connect", "manage", "check", "credentials", "calls", "callbacks", "watch", "webhooks",
  "operate", "health", "reflection"]
integration_types = ["sandbox_api_key"]

[services.bystander]
certificates = ["{TRUST_DOMAIN}/bystander"]
permissions = []
"""


class CredentialIssuer:
    """Issues certificates and tokens, and writes the files that a server reads into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.services = TokenIssuer("https://services.example")
        self.users = TokenIssuer("https://users.example")
        self.write("server", self.authority.issue(SERVER))
        self.write("sidecar", self.certificate("/sidecar"))
        self.put("ca.pem", self.authority.certificate)
        self.put("services.json", self.services.jwks)
        self.put("users.json", self.users.jwks)
        self.put("policy.toml", POLICY.encode())

    def put(self, name: str, content: bytes) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def write(self, name: str, pair: Pair) -> None:
        """Write a certificate and its key."""
        self.put(f"{name}-key.pem", pair.key)
        self.put(f"{name}.pem", pair.certificate)

    def certificate(self, path: str, **options: Any) -> Pair:
        """A certificate with a SPIFFE ID."""
        return self.authority.issue([x509.UniformResourceIdentifier(f"{TRUST_DOMAIN}{path}")], **options)

    @property
    def token_settings(self) -> dict[str, Any]:
        """Settings for a server that accepts tokens."""
        return {
            "JWT_JWKS": str(self.folder / "services.json"),
            "JWT_ISSUER": self.services.issuer,
            "JWT_AUDIENCE": "integrations",
            "USER_JWT_JWKS": str(self.folder / "users.json"),
            "USER_JWT_ISSUER": self.users.issuer,
            "USER_JWT_AUDIENCE": "integrations",
            "POLICY_FILE": str(self.folder / "policy.toml"),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Settings for a server that requires a certificate for every connection and accepts tokens."""
        return {
            **self.token_settings,
            "TLS_CERT_FILE": str(self.folder / "server.pem"),
            "TLS_KEY_FILE": str(self.folder / "server-key.pem"),
            "TLS_CLIENT_CA_FILE": str(self.folder / "ca.pem"),
            "SIDECAR_TLS_CA_FILE": str(self.folder / "ca.pem"),
            "SIDECAR_TLS_CERT_FILE": str(self.folder / "sidecar.pem"),
            "SIDECAR_TLS_KEY_FILE": str(self.folder / "sidecar-key.pem"),
        }

    def channel(self, address: str, pair: Pair | None, roots: bytes | None = None) -> grpc.aio.Channel:
        """A channel with a client certificate, or without one for None."""
        shown = (None, None) if pair is None else (pair.key, pair.certificate)
        credentials = grpc.ssl_channel_credentials(roots or self.authority.certificate, *shown)
        return grpc.aio.secure_channel(address, credentials, options=[("grpc.enable_http_proxy", 0)])


@dataclass(frozen=True, slots=True)
class Caller:
    """A client: a channel with its certificate, and a token or None."""

    channel: grpc.aio.Channel = field(repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """The metadata of each call. Its id is always the same, so that equal errors are equal."""
        token = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*token, ("x-request-id", "of-every-call"))

    @property
    def service(self) -> Any:
        """The service under test."""
        return IntegrationServiceStub(self.channel)


@dataclass(frozen=True, slots=True)
class AuthenticatedSystem:
    """A server with authentication. The service `backend` has all permissions."""

    system: System
    credential_issuer: CredentialIssuer
    stack: AsyncExitStack = field(repr=False)

    async def caller(self, pair: Pair | None, token: str | None = None) -> Caller:
        """A client with the certificate and token."""
        channel = self.credential_issuer.channel(self.system.grpc_address, pair)
        return Caller(await self.stack.enter_async_context(channel), token)

    async def backend(self) -> Caller:
        """The service that has all permissions."""
        return await self.caller(self.credential_issuer.certificate("/backend"))

    async def unidentified(self, token: str | None = None) -> Caller:
        """A client with a valid certificate that the policy does not name, such as a proxy."""
        return await self.caller(self.credential_issuer.authority.issue([], common_name="backend"), token)

    async def user(self, user_id: str) -> Caller:
        """A user with a token, behind such a proxy."""
        return await self.unidentified(self.credential_issuer.users.token(user_id, self.now))

    @property
    def now(self) -> datetime:
        """The server's time."""
        return self.clock()

    @property
    def clock(self) -> ShiftedClock:
        """The server's clock."""
        return self.system.clock


@asynccontextmanager
async def run_authenticated_system(
    database_url: str, folder: Path, **settings: str
) -> AsyncIterator[AuthenticatedSystem]:
    """Run a system with authentication on a migrated database. Callbacks require confirmation."""
    credential_issuer = CredentialIssuer(folder)
    async with (
        run_system(
            database_url,
            extra_providers=[lambda factory, _: register_signed_webhook_provider(factory), replace_google_calendar],
            environment={APP_SECRET_SETTING: APP_SECRET},
            **{**credential_issuer.settings, **CONFIRMING, **settings},
        ) as system,
        AsyncExitStack() as stack,
    ):
        yield AuthenticatedSystem(system, credential_issuer, stack)


async def begin(
    authenticated: AuthenticatedSystem,
    caller: Caller,
    user_id: str = "ada",
    account: str = "ada",
    integration_type: str = "sandbox",
) -> dict[str, str]:
    """Begin a connection and consent to it; the query of the provider's redirect."""
    connect_response = await caller.service.Connect(
        pb.ConnectRequest(user_id=user_id, integration_type=integration_type)
    )
    return query_of(await authenticated.system.decide(connect_response, account=account))


async def connect(
    authenticated: AuthenticatedSystem,
    caller: Caller,
    user_id: str = "ada",
    account: str = "ada",
    integration_type: str = "sandbox",
) -> int:
    """Connect an account, with the callback sent by the app's backend; the integration's id."""
    query = await begin(authenticated, caller, user_id, account, integration_type)
    done = await caller.service.HandleCallback(pb.HandleCallbackRequest(**query, user_id=user_id))
    assert done.success
    return int(done.integration_id)


def utc_now() -> datetime:
    """The current time."""
    return datetime.now(UTC)
