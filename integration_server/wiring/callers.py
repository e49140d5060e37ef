"""How callers are known: what their certificates, tokens and the policy are read from."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from integration_server.domain.errors import ProviderUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.providers.http import ProviderHttp
from integration_server.providers.network import CheckedNetwork
from integration_server.providers.urls import origin_of
from integration_server.reloading import Reloaded
from integration_server.rpc.callers import Kind
from integration_server.rpc.certificates import ServerCertificates
from integration_server.rpc.guard import CallerInterceptor, Confinement, ConfinementInterceptor, Doorkeeper
from integration_server.rpc.policy import read_policy
from integration_server.rpc.tokens import IssuedTokens, Issuer, Keys, KeysAtUrl, KeysInFile, read_key_file
from integration_server.service.managing import Managing
from integration_server.service.ports import Clock
from integration_server.settings import Settings, is_url


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands before the servicers, and what must be looked at again and again for it.

    `admitting` lets callers in, and `confining` keeps their requests within what they may touch.
    """

    admitting: Sequence[grpc.aio.ServerInterceptor] = ()
    confining: Sequence[grpc.aio.ServerInterceptor] = ()
    credentials: grpc.ServerCredentials | None = None
    looks: Sequence[Callable[[], Awaitable[None]]] = ()


@asynccontextmanager
async def guarding(settings: Settings, managing: Managing, clock: Clock) -> AsyncIterator[Guard]:
    """What knows the callers; empty where none are to be known. Raises `Unusable` with what is wrong in its files."""
    # Where keys are fetched from is named by the operator, and mostly inside.
    async with ProviderHttp(clock, dev_mode=settings.dev_mode, network=CheckedNetwork(_anywhere)) as http:
        yield _build_guard(settings, http, managing, clock)


def _anywhere(_address: object) -> bool:
    return True


def _build_guard(settings: Settings, http: ProviderHttp, managing: Managing, clock: Clock) -> Guard:
    certificates = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        certificates = ServerCertificates(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    credentials = None if certificates is None else certificates.credentials()
    looks = [] if certificates is None else [certificates.look]
    if settings.policy_file is None:
        return Guard(credentials=credentials, looks=looks)
    policy = Reloaded("policy", [settings.policy_file], lambda contents: read_policy(contents, managing.own_name))
    issuers = _build_issuers(settings, http, clock)
    tokens = IssuedTokens(issuers, settings.jwt_algorithms, settings.jwt_leeway, clock) if issuers else None

    async def type_of(integration_id: IntegrationId, user_id: UserId) -> str:
        return (await managing.get_integration(integration_id, user_id)).integration_type

    doorkeeper = Doorkeeper(lambda: policy.value, tokens, clock, health_is_open=settings.health_open)
    looks += [policy.look, *(issuer.keys.look for issuer in issuers)]
    confining = ConfinementInterceptor(doorkeeper, Confinement(type_of, managing.own_name))
    return Guard([CallerInterceptor(doorkeeper)], [confining], credentials, looks)


def _build_issuers(settings: Settings, http: ProviderHttp, clock: Clock) -> Sequence[Issuer]:
    """Whose tokens are taken: the issuer of services', and that of users'."""

    def keys(place: str) -> Keys:
        if not is_url(place):
            return KeysInFile(Reloaded("keys", [Path(place)], read_key_file))

        async def fetch() -> bytes:
            answer = await http.request("GET", place, allowed_origins=[origin_of(place)])
            if not answer.is_success:
                raise ProviderUnavailable
            return answer.body

        return KeysAtUrl(fetch, clock)

    given = (
        (Kind.TOKEN, settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks),
        (Kind.USER, settings.user_jwt_issuer, settings.user_jwt_audience, settings.user_jwt_jwks),
    )
    return [
        Issuer(kind, issuer, audience, keys(place))
        for kind, issuer, audience, place in given
        if issuer is not None and audience is not None and place is not None
    ]
