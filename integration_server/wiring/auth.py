"""Builds the authentication and authorization of callers from certificates, token issuers and the policy file."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from integration_server.domain.callers import IdentityKind, Permissions, Policy
from integration_server.domain.errors import ProviderUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.peers import PeerLimiter, TrustedProxies
from integration_server.hot_reload import ReloadedFile
from integration_server.providers.http import ProviderHttp, origin_of
from integration_server.providers.outbound_connections import SsrfGuardedNetwork
from integration_server.rpc.authentication import SidecarAuthenticator, TokenAuthenticator, authenticate, client_address
from integration_server.rpc.authorization import (
    RequestAuthorizer,
    authorize_method,
    authorize_request,
    except_health,
    only_sidecar,
)
from integration_server.rpc.hot_path import AuthenticationBasis
from integration_server.rpc.methods import Interceptor
from integration_server.rpc.tls import ReloadingServerCredentials
from integration_server.service.common_types import Clock
from integration_server.service.integrations.integration_manager import IntegrationManager
from integration_server.setting_types import is_url
from integration_server.settings import Settings
from integration_server.wiring.system import monotonic

if TYPE_CHECKING:
    from integration_server.rpc.jwt_verifier import Issuer, Jwks

# Of tokens that are not valid, from one address. A caller whose token source is broken retries about once a second.
_MAX_FAILURES = 20
_FAILURES_PER_SECOND = 1.0


@dataclass(frozen=True, slots=True)
class AuthStack:
    """The interceptors that authenticate and authorize callers, where they are not authenticated only the sidecar; the
    server's TLS credentials; and the functions that reload their files."""

    authenticate: Sequence[Interceptor] = ()
    authorize_method: Sequence[Interceptor] = ()
    authorize_request: Sequence[Interceptor] = ()
    credentials: grpc.ServerCredentials | None = None
    reloaders: Sequence[Callable[[], Awaitable[None]]] = ()
    validity_periods: Callable[[], Mapping[str, tuple[datetime, datetime]]] = dict
    """Of the certificates, by their role."""
    basis: AuthenticationBasis | None = None
    """None where callers are not authenticated."""


@asynccontextmanager
async def open_auth_stack(
    settings: Settings,
    integration_manager: IntegrationManager,
    clock: Clock,
    sidecar_token: str,
    record_refusal: Callable[[], object] = lambda: None,
) -> AsyncIterator[AuthStack]:
    """Build the stack that the settings describe. Raises `InvalidFile` with the problems of its files.

    `sidecar_token` authenticates the sidecar that starts with the server, also where no other caller is authenticated.
    """
    async with open_issuers(settings, clock) as issuers:
        credentials, reloaders = None, list[Callable[[], Awaitable[None]]]()
        validity_periods: Callable[[], Mapping[str, tuple[datetime, datetime]]] = dict
        if settings.tls_cert_file is not None and settings.tls_key_file is not None:
            certificates = ReloadingServerCredentials(
                settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, clock
            )
            credentials, reloaders = certificates.credentials(), [certificates.poll]
            validity_periods = certificates.validity_periods
        if settings.policy_file is None:
            yield AuthStack(
                authenticate=[only_sidecar(authenticate(SidecarAuthenticator(sidecar_token), clock))],
                authorize_method=[only_sidecar(authorize_method(partial(Policy, {}, Permissions())))],
                credentials=credentials,
                reloaders=reloaders,
                validity_periods=validity_periods,
            )
            return
        from integration_server.rpc.policy import read_policy  # noqa: PLC0415 - only a policy file needs it

        policy = ReloadedFile(
            "policy", [settings.policy_file], lambda contents: read_policy(contents, integration_manager.canonical_type)
        )
        tokens = None
        if issuers:
            from integration_server.rpc.jwt_verifier import JwtVerifier  # noqa: PLC0415 - as in `open_issuers`

            verifier = JwtVerifier(issuers, settings.jwt_algorithms, settings.jwt_leeway, clock)
            limiter = PeerLimiter(burst=_MAX_FAILURES, per_second=_FAILURES_PER_SECOND, monotonic=monotonic)
            tokens = TokenAuthenticator(verifier, limiter, clock, record_refusal=record_refusal)
        address_of = client_address(TrustedProxies(settings.trusted_proxies))

        async def find_type(integration_id: IntegrationId, user_id: UserId) -> str:
            return (await integration_manager.get_integration(integration_id, user_id)).integration_type

        authorizer = RequestAuthorizer(find_type, integration_manager.canonical_type)

        def basis() -> object:
            return policy.value, [issuer.keys.value for issuer in issuers]

        allow_public = except_health if settings.health_allow_unauthenticated else lambda interceptor: interceptor
        yield AuthStack(
            authenticate=[allow_public(authenticate(SidecarAuthenticator(sidecar_token, tokens), clock, address_of))],
            authorize_method=[allow_public(authorize_method(partial(getattr, policy, "value")))],
            authorize_request=[allow_public(authorize_request(authorizer))],
            credentials=credentials,
            reloaders=[*reloaders, policy.poll, *(issuer.keys.poll for issuer in issuers)],
            validity_periods=validity_periods,
            basis=basis,
        )


@asynccontextmanager
async def open_issuers(settings: Settings, clock: Clock) -> "AsyncIterator[Sequence[Issuer]]":
    """The configured token issuers: of services, and of users. Raises `InvalidFile`."""
    configured = list(_configured_issuers(settings))
    if not configured:
        yield ()
        return
    from integration_server.rpc.jwt_verifier import Issuer  # noqa: PLC0415 - 30 ms that only issuers need

    # The operator configures the JWKS address, which is often internal.
    network = SsrfGuardedNetwork(lambda _address: True)
    async with ProviderHttp(clock, dev_mode=settings.dev_mode, network=network) as http:
        yield [Issuer(kind, name, audience, _jwks(keys, http, clock)) for kind, name, audience, keys in configured]


def _configured_issuers(settings: Settings) -> Iterator[tuple[IdentityKind, str, str, str]]:
    """Kind, name, audience and location of the keys of each."""
    for kind, name, audience, keys in (
        (IdentityKind.TOKEN, settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks),
        (IdentityKind.USER, settings.user_jwt_issuer, settings.user_jwt_audience, settings.user_jwt_jwks),
    ):
        if name is not None and audience is not None and keys is not None:
            yield kind, name, audience, keys


def _jwks(location: str, http: ProviderHttp, clock: Clock) -> "Jwks":
    from integration_server.rpc.jwt_verifier import FileJwks, RemoteJwks  # noqa: PLC0415 - likewise

    if not is_url(location):
        return FileJwks(Path(location))

    async def fetch() -> bytes:
        response = await http.request("GET", location, allowed_origins=[origin_of(location)])
        if not response.is_success:
            raise ProviderUnavailable
        return response.body

    return RemoteJwks(fetch, clock)


def import_for_workers(settings: Settings) -> None:
    """Import, before the workers are forked, what these settings need to verify callers: they share its memory."""
    if next(_configured_issuers(settings), None) is not None:
        import_module("integration_server.rpc.jwt_verifier")
    if settings.policy_file is not None:
        import_module("integration_server.rpc.policy")
    if settings.tls_cert_file is not None:
        import_module("cryptography.x509")
