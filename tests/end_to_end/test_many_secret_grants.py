"""A thousand integrations over three replicas: one token request per integration and expiry, for grants of secrets."""

import asyncio
import faulthandler
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from integration_server.bootstrap import running_server
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.small_server import Received, run_small_server
from tests.end_to_end.system import Clients, ShiftedClock, capture_logs, clients_of, settings_for

INTEGRATIONS = 1000
USERS = 20
DEADLINE = 1200  # seconds: half a minute of work, which a busy machine does in ten; instead of pytest's own deadline
AT_ONCE = {"sqlite": 3, "postgresql": 50}
"""The integrations that are connected, or asked for at each replica, at the same time: SQLite has one writer."""

pytestmark = pytest.mark.asyncio(loop_scope="function")

DECLARATIONS = {
    "client_credentials": """\
integration_type = "many"
auth_method = "oauth2"
grant = "client_credentials"
token_url = "{url}/token"
token_auth = "client_secret_post"
verify = false
secret_fields = {{ client_id = {{}}, client_secret = {{}} }}
""",
    "login": """\
integration_type = "many"
auth_method = "oauth2"
grant = "login"
token_response = {{ access_token = "header:X-Session" }}
lifetime_seconds = 3600
request_headers = {{ X-Session = "{{access_token}}" }}
secret_fields = {{ client_id = {{}}, client_secret = {{}} }}
[[login]]
url = "{url}/token"
body_type = "form"
body = {{ client_id = "{{client_id}}", password = "{{client_secret}}" }}
""",
}
# A lease is longer than a busy machine needs for a batch: an expired one would allow a second request.
SETTINGS = {"REFRESH_LEASE_SECONDS": "600", "PROVIDER_TIMEOUT_SECONDS": "60", "CALLER_MAX_CONCURRENCY": "20000"}


class TokenServer:
    """Counts the token requests of each account, and issues numbered tokens for an hour."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()

    def __call__(self, request: Received) -> tuple[int, Any, Sequence[tuple[str, str]]]:
        """Respond to a token request."""
        account = request.form["client_id"]
        self.requests[account] += 1
        token = f"{account}-{self.requests[account]}"
        return 200, {"access_token": token, "expires_in": 3600}, [("X-Session", token)]


@pytest.mark.slow
@pytest.mark.parametrize("grant", DECLARATIONS)
async def test_a_thousand_integrations_have_one_token_request_each(
    grant: str, tmp_path: Path, database_url: str
) -> None:
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    server, clock = TokenServer(), ShiftedClock()
    async with AsyncExitStack() as stack:
        logs = await stack.enter_async_context(capture_logs())
        small = await stack.enter_async_context(run_small_server(server))
        (tmp_path / "many.toml").write_text(DECLARATIONS[grant].format(url=small.url))
        replicas: list[Clients] = []
        for number in range(3):
            own = {"PROVIDERS_DIR": str(tmp_path), "REFRESH_JOURNAL_DIR": str(tmp_path / f"journal-{number}")}
            settings = settings_for(database_url, **own, **SETTINGS)
            running = await stack.enter_async_context(running_server(settings, {}, clock=clock))
            replicas.append(await stack.enter_async_context(clients_of(running.grpc_address, running.sidecar_url)))

        at_once = AT_ONCE[database_url.partition(":")[0]]
        ids = await connect_all(replicas, at_once)
        assert len(set(ids)) == INTEGRATIONS
        before = Counter(server.requests)
        clock.shift = timedelta(hours=2)
        found: dict[int, set[str]] = {}
        for begin in range(0, INTEGRATIONS, at_once):
            numbers = range(begin, min(begin + at_once, INTEGRATIONS))
            of_replicas = await asyncio.gather(*(tokens_of(replica, ids, numbers) for replica in replicas))
            found |= {number: set(tokens) for number, *tokens in zip(numbers, *of_replicas, strict=True)}

        requests = {number: server.requests[name_of(number)] - before[name_of(number)] for number in found}
        assert len(requests) == INTEGRATIONS
        # On a machine so busy that the database takes no tokens for seconds, they may be requested again.
        journaled = re.findall(r"refresh_journaled .*\bintegration_id=([0-9]+)", logs.getvalue())
        repeated = {number for number, count in requests.items() if count != 1}
        assert {ids[number] for number in repeated} <= set(map(int, journaled))
        for number in requests.keys() - repeated:
            assert found[number] == {f"{name_of(number)}-{before[name_of(number)] + 1}"}


def name_of(number: int) -> str:
    """The name of an account at the provider."""
    return f"account-{number}"


async def connect_all(replicas: Sequence[Clients], at_once: int) -> list[int]:
    """Connect all accounts, each at one of the replicas; their ids."""
    limit = asyncio.Semaphore(at_once)

    async def connect(number: int) -> int:
        secrets = {"client_id": name_of(number), "client_secret": f"secret-{number}"}
        request = pb.ConnectWithApiKeyRequest(
            user_id=f"user-{number % USERS}", integration_type="many", secret_fields=secrets
        )
        async with limit:
            response = await repeated_while_unavailable(lambda: replicas[number % 3].service.ConnectWithApiKey(request))
        return int(response.integration.integration_id)

    return await asyncio.gather(*map(connect, range(INTEGRATIONS)))


async def tokens_of(replica: Clients, ids: Sequence[int], numbers: Sequence[int]) -> list[str]:
    """The tokens of some accounts from one replica, in calls at the same time."""

    async def token_of(number: int) -> str:
        request = pb.GetCredentialsRequest(user_id=f"user-{number % USERS}", integration_id=ids[number])
        response = await repeated_while_unavailable(lambda: replica.service.GetCredentials(request))
        return token_in(response.credentials)

    return await asyncio.gather(*map(token_of, numbers))


async def repeated_while_unavailable(call: Callable[[], Awaitable[Any]]) -> Any:
    """The response to a call, which is repeated as callers do while the database has no time for it."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.5)


def token_in(credentials: Any) -> str:
    """The token in the headers of credentials."""
    headers = dict(credentials.headers)
    return str(headers.get("X-Session") or headers["Authorization"].removeprefix("Bearer "))
