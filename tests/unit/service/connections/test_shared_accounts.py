"""Users with shared accounts, over the sandbox: no disconnection ends the live integration of another user.

The sandbox is a real OAuth server without sockets. Only the user's browser is replaced: it consents at once.
"""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from integration_server.domain.errors import IntegrationServerError, ProviderRejected, ProviderUnavailable
from integration_server.domain.integration import Integration, UserId
from integration_server.domain.revocation import RevocationState
from integration_server.providers.base import ProviderContext
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import ProviderHttp
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.sandbox.app import create_app
from integration_server.sandbox.behaviour import Behaviour, Fault, Handler
from integration_server.sandbox.model import Account
from integration_server.sandbox.state import Sandbox
from integration_server.sidecar.callback import DEADLINE
from integration_server.storage.integrations import integration_of
from integration_server.storage.tables import integrations
from tests.fakes.provider import wait_until
from tests.fakes.system import ADA, EVE, FakeSystem

Ends = Literal["token", "grant", "account"]

SERVER = "https://sandbox.example"
ACCOUNTS = [f"account-{number}" for number in range(8)]
USERS = [UserId(f"user-{number}") for number in range(3)]
TYPES = ("first", "second")
_REQUEST_TIME = timedelta(milliseconds=20)


def provider_class(name: str, ends: Ends) -> type[OAuth2Provider]:
    """A provider of the sandbox whose revocation ends this."""

    class SandboxProvider(OAuth2Provider):
        integration_type = name
        oauth_authorize_url = f"{SERVER}/oauth/authorize"
        oauth_token_url = f"{SERVER}/oauth/token"
        revoke_url = f"{SERVER}/oauth/revoke"
        required_scopes = ("read",)
        verify_url = f"{SERVER}/userinfo"
        account_id_field = "sub"
        revocation_ends = ends

    return SandboxProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRevocation(Fault):
    """The provider revokes after other tasks have run for a while, or when it is released."""

    turns: int = 40
    released: asyncio.Event | None = None

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Wait, and handle the request."""
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if self.released is not None:
            await self.released.wait()
        return await handler(request)


async def take_turns(_seconds: float) -> None:
    """Let other tasks run, in place of a pause."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class World:
    """A system whose providers are the sandbox, and what has happened to its integrations."""

    ends: Ends
    keeps_shared_grants: bool = True
    declared: Ends | None = None
    ended: set[int] = field(default_factory=set)
    checked: set[tuple[int, int]] = field(default_factory=set)
    checked_revocations: int = 0
    steps: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.system = FakeSystem(options={"keeps_shared_grants": self.keeps_shared_grants, "pause": take_turns})
        behaviour = Behaviour(
            access_token_lifetime=10**8,
            # A provider that repeats its tokens cannot rotate them: each refresh would end the other integrations.
            repeats_tokens=self.ends == "token",
            rotate_refresh_tokens=self.ends != "token",
            revocation_ends=self.ends,
            faults={"revoke": SlowRevocation()},
        )
        accounts = [Account(sub, f"{sub}@example.com", sub) for sub in ACCOUNTS]
        self.sandbox = Sandbox(clock=self.system.clock, accounts=accounts, behaviour=behaviour)
        self.app = create_app(self.sandbox)
        http = ProviderHttp(self.system.clock, transport=httpx.ASGITransport(self.serve))
        settings: dict[str, str] = {}
        factory = ProviderFactory()
        for name in TYPES:
            client_id = name if self.ends == "account" else "shared"
            redirect_uris = [self.redirect_uri(each) for each in TYPES]
            self.sandbox.register_client(client_id, "s3cret", redirect_uris)
            settings |= {f"{name.upper()}_CLIENT_ID": client_id, f"{name.upper()}_CLIENT_SECRET": "s3cret"}
            factory.register(name, provider_class(name, self.declared or self.ends))
        registry = factory.build(ProviderContext(http, self.system.clock, settings))
        self.system.providers.by_type.update(registry)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The sandbox, each of whose requests takes time."""
        self.system.clock.advance(_REQUEST_TIME)
        await self.app(scope, receive, send)
        self.system.clock.advance(_REQUEST_TIME)

    @staticmethod
    def redirect_uri(integration_type: str) -> str:
        """The callback of a type."""
        return f"https://localhost/api/v1/integrations/callback/{integration_type}"

    async def connect(
        self, user_id: UserId, account: str, integration_type: str = "first", **fields: Any
    ) -> Integration:
        """Connect an account, whose owner consents at once."""
        authorization = await self.system.begin(user_id, integration_type, **fields)
        query = {name: values[0] for name, values in parse_qs(urlsplit(authorization.url).query).items()}
        code = self.sandbox.issue_code(
            self.sandbox.clients[query["client_id"]],
            query["redirect_uri"],
            account,
            tuple(query["scope"].split()),
            query["code_challenge"],
        )
        result = await self.system.call_back(authorization.state, code=code, user_id=user_id)
        return self.system.row(result.integration_id)

    async def disconnect(self, integration: Integration) -> RevocationState:
        """Disconnect an integration."""
        service = self.system.revocation_service
        return await service.disconnect_integration(integration.integration_id, integration.user_id)

    async def run_background(self, minutes: int = 10) -> None:
        """Let the worker send what is due."""
        self.system.clock.advance(timedelta(minutes=minutes))
        await self.system.worker.poll()
        for _ in range(200):
            await asyncio.sleep(0)

    def live(self) -> list[Integration]:
        """All connected integrations that have not been ended."""
        query = select(integrations).where(integrations.c.connect_time.is_not(None))
        rows = map(integration_of, self.system.database.rows(query.order_by(integrations.c.integration_id)))
        return [row for row in rows if row.integration_id not in self.ended]

    async def is_alive(self, integration: Integration) -> bool:
        """Whether the provider accepts the stored tokens."""
        tokens = await self.system.tokens(integration.integration_id)
        return self.sandbox.find_account(tokens.access_token) is not None

    async def note_ended(self) -> None:
        """Find live integrations whose tokens the provider rejects. Nothing but revocations ends tokens here."""
        if self.checked_revocations != self.sandbox.calls["revoke"]:
            self.checked.clear()
        self.checked_revocations = self.sandbox.calls["revoke"]
        for row in self.live():
            key = row.integration_id, row.version
            if key not in self.checked and not await self.is_alive(row):
                self.ended.add(row.integration_id)
            self.checked.add(key)

    # --- random steps

    async def step(self, rng: random.Random) -> None:
        """One random step, whose expected errors a user would see."""
        kind = rng.choices(
            ("connect", "disconnect", "refresh", "reconnect", "together", "outage", "background"),
            (30, 22, 14, 8, 12, 6, 8),
        )[0]
        self.steps[kind] += 1
        with suppress(IntegrationServerError):
            await getattr(self, f"_{kind}")(rng)
        await self.note_ended()

    def _any(self, rng: random.Random) -> Integration | None:
        live = self.live()
        return rng.choice(live) if live else None

    async def _connect(self, rng: random.Random) -> None:
        await self.connect(rng.choice(USERS), rng.choice(ACCOUNTS), rng.choice(TYPES))

    async def _disconnect(self, rng: random.Random) -> None:
        if (integration := self._any(rng)) is not None:
            await self.disconnect(integration)

    async def _refresh(self, rng: random.Random) -> None:
        if (integration := self._any(rng)) is not None:
            await self.system.refresher.refresh(integration)

    async def _reconnect(self, rng: random.Random) -> None:
        """Often with another account, which is a mismatch: the new tokens are thrown away."""
        if (integration := self._any(rng)) is not None:
            await self.connect(
                integration.user_id,
                rng.choice(ACCOUNTS),
                integration.integration_type,
                integration_id=integration.integration_id,
            )

    async def _together(self, rng: random.Random) -> None:
        """Disconnect an account while other users connect it."""
        integration = self._any(rng)
        if integration is None or integration.account_id is None:
            return
        same_account = [self._connect_account(rng, integration.account_id) for _ in range(2)]
        await asyncio.gather(self.disconnect(integration), *same_account, return_exceptions=True)

    async def _connect_account(self, rng: random.Random, account: str) -> None:
        user_id, integration_type = rng.choice(USERS), rng.choice(TYPES)
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        await self.connect(user_id, account, integration_type)

    async def _outage(self, rng: random.Random) -> None:
        """The revocation endpoint fails, or recovers."""
        is_down = not isinstance(self.sandbox.behaviour.faults["revoke"], SlowRevocation)
        self.set_revocation(SlowRevocation() if is_down else Fault(status=503))

    async def _background(self, rng: random.Random) -> None:
        await self.run_background()

    def set_revocation(self, fault: Fault) -> None:
        """Set the behaviour of the revocation endpoint."""
        self.sandbox.behaviour = replace(self.sandbox.behaviour, faults={"revoke": fault})

    async def disconnect_everything(self) -> None:
        """Disconnect what is left, and send every revocation."""
        self.set_revocation(Fault())
        for integration in self.live():
            await self.disconnect(integration)
        for _ in range(1000):
            if not self.system.revocation_rows():
                return
            await self.run_background(minutes=60)
        raise AssertionError("the outbox is not empty")


async def run(ends: Ends, steps: int, seed: int = 0, *, keeps_shared_grants: bool = True) -> World:
    """A world after so many random steps."""
    world, rng = World(ends, keeps_shared_grants), random.Random(f"shared accounts {ends} {seed}")
    async with world.system.tasks:
        for _ in range(steps):
            await world.step(rng)
        print(
            f"{steps} steps ({ends}): {dict(world.steps)}, {world.sandbox.calls['revoke']} revocations, "
            f"{len(world.live())} live at the end, {len(world.ended)} ended by another disconnection"
        )
        if keeps_shared_grants:
            await world.disconnect_everything()
    return world


RUNS = [
    pytest.param(60, 0, id="60 steps"),
    # 10,000 steps for each kind of revocation, in parts: a test may not take minutes, also on a busy machine.
    *(pytest.param(250, seed, marks=pytest.mark.slow, id=f"250 steps, {seed}") for seed in range(1, 41)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "seed"), RUNS)
@pytest.mark.parametrize("ends", ["token", "grant", "account"])
async def test_no_disconnection_ends_a_live_integration(ends: Ends, steps: int, seed: int) -> None:
    world = await run(ends, steps, seed)
    assert world.sandbox.calls["revoke"] > steps // 30
    assert world.ended == set()
    if ends != "token":  # otherwise grants that were replaced stay valid, as docs/revocation.md says
        assert [grant for account in ACCOUNTS for grant in world.sandbox.grants_of(account)] == []


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["token", "grant", "account"])
async def test_negative_control_without_the_defence_disconnections_end_live_integrations(ends: Ends) -> None:
    world = await run(ends, 50, keeps_shared_grants=False)
    assert len(world.ended) > 0


# --- a revocation in progress ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "negative control"])
@pytest.mark.parametrize("ends", ["grant", "account"])
async def test_an_account_is_not_connected_while_a_revocation_ends_it(ends: Ends, is_kept: bool) -> None:
    world = World(ends, keeps_shared_grants=is_kept)
    async with world.system.tasks:
        released = asyncio.Event()
        world.set_revocation(SlowRevocation(released=released))
        disconnection = asyncio.create_task(world.disconnect(await world.connect(ADA, ACCOUNTS[0])))
        await wait_until(lambda: world.sandbox.in_flight["revoke"])
        connection = asyncio.create_task(world.connect(EVE, ACCOUNTS[0]))
        await take_turns(0)
        released.set()
        assert await disconnection is RevocationState.REVOKED
        await asyncio.wait([connection])
        await world.note_ended()
        # Eve is told that it has failed, and can connect again at once.
        assert isinstance(connection.exception(), ProviderRejected) is is_kept
        assert bool(world.ended) is not is_kept
        assert await world.is_alive(await world.connect(EVE, ACCOUNTS[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingRevocation(Fault):
    """The provider responds with 503 when it is released."""

    released: asyncio.Event

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Wait, and fail."""
        await self.released.wait()
        return Response(status_code=503)


async def connect_during_revocation(ends_in_pause: int | None) -> tuple[World, list[float], Integration | Exception]:
    """Connect while a revocation is in progress that fails in this pause of the connection, or after it (None).

    Returns the seconds of each pause, and the outcome.
    """
    world, released, pauses = World("grant"), asyncio.Event(), list[float]()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == ends_in_pause:
            released.set()
            await wait_until(lambda: all(row.due_time != row.call_due_time for row in world.system.revocation_rows()))

    world.system.oauth_callback = world.system.another_process_with(pause=pause).use_cases.oauth_callback
    async with world.system.tasks:
        adas = await world.connect(ADA, ACCOUNTS[0])
        world.set_revocation(FailingRevocation(released=released))
        disconnection = asyncio.create_task(world.disconnect(adas))
        await wait_until(lambda: world.sandbox.in_flight["revoke"])
        (outcome,) = await asyncio.gather(world.connect(EVE, ACCOUNTS[0]), return_exceptions=True)
        released.set()
        assert await disconnection is RevocationState.PENDING
        assert not isinstance(outcome, BaseException) or isinstance(outcome, Exception)
        return world, pauses, outcome


async def test_a_connection_waits_for_a_revocation_as_long_as_the_browser_waits_for_the_callback() -> None:
    world, longest, outcome = await connect_during_revocation(None)
    assert isinstance(outcome, ProviderUnavailable)
    assert "revo" not in str(outcome)  # it may be another user's
    assert 10 < sum(longest) < DEADLINE - 5  # of the sidecar; a provider has 10 s to respond
    assert world.sandbox.calls["token"] == 2 + len(longest)
    for number in range(1, len(longest) + 1):  # no pause is in vain
        world, pauses, outcome = await connect_during_revocation(number)
        assert isinstance(outcome, Integration), outcome
        assert pauses == longest[:number]
        assert await world.is_alive(outcome)


async def test_a_connection_that_outlives_the_revocation_is_stored() -> None:
    world = World("token")
    async with world.system.tasks:
        released = asyncio.Event()
        adas = await world.connect(ADA, ACCOUNTS[0])
        world.set_revocation(SlowRevocation(released=released))
        disconnection = asyncio.create_task(world.disconnect(adas))
        await wait_until(lambda: world.sandbox.in_flight["revoke"])
        world.sandbox.behaviour = replace(world.sandbox.behaviour, repeats_tokens=False)
        assert await world.is_alive(await world.connect(EVE, ACCOUNTS[0]))  # with another token
        released.set()
        assert await disconnection is RevocationState.REVOKED
        await world.note_ended()
        assert not world.ended
