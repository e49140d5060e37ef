"""How callers are known: what their certificates, tokens and the policy are read from."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from integration_server.domain.errors import ProviderUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.hot_reload import ReloadedFile
from integration_server.providers.http import ProviderHttp
from integration_server.providers.ssrf_guard import SsrfGuardedBackend
from integration_server.providers.urls import origin_of
from integration_server.rpc.authentication import (
    AuthenticationInterceptor,
    Authenticator,
    AuthorizationInterceptor,
    RequestAuthorizer,
)
from integration_server.rpc.jwt_verifier import FileJwks, Issuer, Jwks, JwtVerifier, RemoteJwks, parse_jwks_file
from integration_server.rpc.peer_identity import IdentityKind
from integration_server.rpc.policy import read_policy
from integration_server.rpc.tls import ReloadingServerCredentials
from integration_server.service.common_types import Clock
from integration_server.service.integrations.integration_manager import IntegrationManager
from integration_server.settings import Settings, is_url


@dataclass(frozen=True, slots=True)
class AuthStack:
    """What stands before the servicers, and what must be looked at again and again for it.

    `authentication` lets callers in, and `authorization` keeps their requests within what they may touch.
    """

    authentication: Sequence[grpc.aio.ServerInterceptor] = ()
    authorization: Sequence[grpc.aio.ServerInterceptor] = ()
    credentials: grpc.ServerCredentials | None = None
    reloaders: Sequence[Callable[[], Awaitable[None]]] = ()


@asynccontextmanager
async def open_auth_stack(
    settings: Settings, integration_manager: IntegrationManager, clock: Clock
) -> AsyncIterator[AuthStack]:
    """What knows the callers; empty where none are to be known. Raises `InvalidFile` with what is wrong in its
    files.
    """
    # Where keys are fetched from is named by the operator, and mostly inside.
    async with ProviderHttp(clock, dev_mode=settings.dev_mode, network=SsrfGuardedBackend(_allow_any_address)) as http:
        yield _build_auth_stack(settings, http, integration_manager, clock)


def _allow_any_address(_address: object) -> bool:
    return True


def _build_auth_stack(
    settings: Settings, http: ProviderHttp, integration_manager: IntegrationManager, clock: Clock
) -> AuthStack:
    certificates = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        certificates = ReloadingServerCredentials(
            settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        )
    credentials = None if certificates is None else certificates.credentials()
    reloaders = [] if certificates is None else [certificates.poll]
    if settings.policy_file is None:
        return AuthStack(credentials=credentials, reloaders=reloaders)
    policy = ReloadedFile(
        "policy", [settings.policy_file], lambda contents: read_policy(contents, integration_manager.canonical_type)
    )
    issuers = _build_issuers(settings, http, clock)
    tokens = JwtVerifier(issuers, settings.jwt_algorithms, settings.jwt_leeway, clock) if issuers else None

    async def find_type(integration_id: IntegrationId, user_id: UserId) -> str:
        return (await integration_manager.get_integration(integration_id, user_id)).integration_type

    authenticator = Authenticator(
        lambda: policy.value, tokens, clock, health_is_public=settings.health_allow_unauthenticated
    )
    reloaders += [policy.poll, *(issuer.keys.poll for issuer in issuers)]
    authorization = AuthorizationInterceptor(
        authenticator, RequestAuthorizer(find_type, integration_manager.canonical_type)
    )
    return AuthStack([AuthenticationInterceptor(authenticator)], [authorization], credentials, reloaders)


def _build_issuers(settings: Settings, http: ProviderHttp, clock: Clock) -> Sequence[Issuer]:
    """Whose tokens are taken: the issuer of services', and that of users'."""

    def keys(location: str) -> Jwks:
        if not is_url(location):
            return FileJwks(ReloadedFile("keys", [Path(location)], parse_jwks_file))

        async def fetch() -> bytes:
            response = await http.request("GET", location, allowed_origins=[origin_of(location)])
            if not response.is_success:
                raise ProviderUnavailable
            return response.body

        return RemoteJwks(fetch, clock)

    given = (
        (IdentityKind.TOKEN, settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks),
        (IdentityKind.USER, settings.user_jwt_issuer, settings.user_jwt_audience, settings.user_jwt_jwks),
    )
    return [
        Issuer(kind, issuer, audience, keys(location))
        for kind, issuer, audience, location in given
        if issuer is not None and audience is not None and location is not None
    ]
