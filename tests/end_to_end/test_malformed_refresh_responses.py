"""Every malformed token response to a refresh: the error for callers, and the status of the integration.

`odd_responses.TABLE` states how a provider reads each response. This test states the consequences: the status of the
call, the status of the integration, and whether the next refresh succeeds. The cases run concurrently, each with its
own type and client, because some of them last until the timeout.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_pb2
from tests.end_to_end.faults import FaultByCase
from tests.end_to_end.replicas import force_refresh
from tests.end_to_end.rpc_errors import parse_rpc_error
from tests.end_to_end.system import System, callback_url, run_system
from tests.integration.providers.odd_responses import TABLE, Failure, RefreshTokenOnly, Tokens

ACTIVE, ERROR, EXPIRED = (
    integration_pb2.STATUS_ACTIVE,
    integration_pb2.STATUS_ERROR,
    integration_pb2.STATUS_EXPIRED,
)
SECRET = "client-secret"
CONCURRENCY = (
    20  # more than the cases that last until the timeout, and few enough for one SQLite file on a busy machine
)


@dataclass(frozen=True, slots=True)
class ObservedError:
    """The error of a refresh and the status of its integration."""

    reason: str
    status: integration_pb2.Status
    code: grpc.StatusCode = grpc.StatusCode.OK
    retry_after: timedelta | None = None


VALID = ObservedError("", ACTIVE)
INVALID_GRANT = ObservedError("REAUTHORIZATION_REQUIRED", EXPIRED, grpc.StatusCode.FAILED_PRECONDITION)


def expected(outcome: Tokens | Failure) -> ObservedError:
    """The consequence of an outcome of the table."""
    if isinstance(outcome, Tokens):
        if outcome.lifetime == timedelta():  # stored, because it can be refreshed, but not usable
            return ObservedError("PROVIDER_UNAVAILABLE", ACTIVE, grpc.StatusCode.UNAVAILABLE)
        return VALID
    if isinstance(outcome, RefreshTokenOnly):
        return VALID  # the access token still works
    if issubclass(outcome.error, ProviderRejected):
        return INVALID_GRANT
    if issubclass(outcome.error, ProviderMisconfigured):
        return ObservedError("PROVIDER_MISCONFIGURED", ACTIVE, grpc.StatusCode.UNAVAILABLE)
    return ObservedError("PROVIDER_UNAVAILABLE", ERROR, grpc.StatusCode.UNAVAILABLE, outcome.retry_after)


def expected_next(outcome: Tokens | Failure, *, was_spent: bool) -> ObservedError:
    """The result of the next refresh, at an endpoint that works again and rotates strictly."""
    if isinstance(outcome, Tokens):
        return VALID if outcome.has_refresh_token else INVALID_GRANT
    if isinstance(outcome, RefreshTokenOnly):
        return VALID
    return INVALID_GRANT if was_spent else VALID  # a forced refresh also tries a grant that has ended


CASES: Mapping[str, str] = {
    f"case_{number}": name for number, name in enumerate(TABLE) if "expires_at" not in TABLE[name][0].token_response
}
"""Integration types, and the lines of the table that they stand for: all but those with a date, as here time passes."""


def register(factory: ProviderFactory, sandbox_url: str) -> None:
    """A type for each case, whose token endpoint knows the case."""
    for case in CASES:

        class CaseProvider(OAuth2Provider):
            integration_type = case
            oauth_authorize_url = f"{sandbox_url}/oauth/authorize"
            oauth_token_url = f"{sandbox_url}/oauth/token?case={case}"
            required_scopes = ("read",)

        factory.register(case, CaseProvider)


async def observe(system: System, integration_id: int) -> ObservedError:
    """Refresh the integration."""
    reason, code, retry_after = "", grpc.StatusCode.OK, None
    try:
        await force_refresh(system, integration_id)
    except grpc.aio.AioRpcError as error:
        refusal = parse_rpc_error(error)
        reason, code, retry_after = refusal.reason, refusal.code, refusal.retry_delay
    return ObservedError(reason, (await system.get(integration_id)).status, code, retry_after)


def differences(
    found: Mapping[str, ObservedError], expected_errors: Mapping[str, ObservedError]
) -> dict[str, tuple[ObservedError, ObservedError]]:
    """The cases that differ: found and expected."""
    return {
        name: (observe, expected_errors[name]) for name, observe in found.items() if observe != expected_errors[name]
    }


def clients_with_used_token(sandbox: Sandbox) -> set[str | None]:
    """The clients whose refresh token was used."""
    return {
        call.client_id for call in sandbox.token_calls if call.grant_type == "refresh_token" and call.outcome == "ok"
    }


@pytest.mark.slow
async def test_every_malformed_refresh_response_has_its_error_and_status(sqlite_url: str) -> None:
    sandbox = Sandbox()
    environment: dict[str, str] = {}
    for case in CASES:
        sandbox.register_client(case, SECRET, [callback_url(case)])
        environment |= {f"{case.upper()}_CLIENT_ID": case, f"{case.upper()}_CLIENT_SECRET": SECRET}
    async with run_system(sqlite_url, sandbox=sandbox, environment=environment, extra_providers=[register]) as system:
        ids = {case: await system.connect(integration_type=case) for case in CASES}

        slots = asyncio.Semaphore(CONCURRENCY)

        async def observe_with_slot(integration_id: int) -> ObservedError:
            async with slots:
                return await observe(system, integration_id)

        async def refresh_all() -> dict[str, ObservedError]:
            found = await asyncio.gather(*map(observe_with_slot, ids.values()))
            return dict(zip(CASES.values(), found, strict=True))

        cases = {case: TABLE[name][0] for case, name in CASES.items()}
        sandbox.behaviour = replace(sandbox.behaviour, faults={"token": FaultByCase(cases=cases)})
        expected_errors = {name: expected(TABLE[name][1]) for name in CASES.values()}
        assert differences(await refresh_all(), expected_errors) == {}

        spent_by = clients_with_used_token(sandbox)
        sandbox.behaviour = replace(sandbox.behaviour, faults={})
        await refresh_all()  # it completes the refreshes that the server has begun itself
        expected_errors = {
            name: expected_next(TABLE[name][1], was_spent=case in spent_by) for case, name in CASES.items()
        }
        assert differences(await refresh_all(), expected_errors) == {}
