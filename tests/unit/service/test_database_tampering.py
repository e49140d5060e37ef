"""What somebody who can write to the database, but has no key, gets by altering one column.

For every column of the schema: another value, an older value of the same row, and the value of another user's row. Each
is written into a copy of a database that real flows have filled, and the API is used. docs/database-tampering.md
declares the effect of each column; the test compares.
"""

import itertools
import json
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Column
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import Boolean, Integer, LargeBinary

from integration_server.bootstrap import Service
from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES
from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.credentials import DecisionPending, DeviceAuthorization
from integration_server.domain.errors import CredentialsUnreadable, IntegrationServerError, ProviderUnavailable
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.background.ports import JobKind
from integration_server.service.common_types import (
    Aead,
)
from integration_server.service.connections.oauth_callback import Callback
from integration_server.service.connections.oauth_connection import ConnectionRequest
from integration_server.service.events.ports import ChangeRange, EventFilter
from integration_server.service.integrations.ports import IntegrationUpdate, NewAccount
from integration_server.service.oauth_clients.ports import SecretState
from integration_server.service.webhooks.webhook_ingestion import NOT_FOUND, UNAUTHORIZED
from integration_server.storage.driver_queries import ConstraintViolated
from integration_server.storage.tables import metadata
from tests.fakes.aead import FakeAead
from tests.fakes.system import ADA, APP_CALLBACK, CONFIRMING, EVE, RETURN_URL, FakeSystem
from tests.signed_webhook_provider import webhook_body
from tests.unit.service.oauth_clients.support import put_client
from tests.unit.service.webhooks.test_webhook_ingestion import APP_SECRET, request

PAGE = Path(__file__).parents[3] / "docs" / "database-tampering.md"

TESTED_ELSEWHERE = {"data_keys", "key_sets", "audit_chains", "audit_entries", "schema_compatibility"}
"""Tables whose every column tests/integration/storage/test_key_set.py and test_audit.py alter, and the schema's own."""

SECRETS = ("first", "second", "third")
CLIENT_CALLERS = ("backend", "second")
USERS = (ADA, EVE)

Facts = Mapping[str, frozenset[str]]
"""What the API returned or used, by question. A question that was refused has an empty answer."""

DEVICE = DeviceAuthorization("device", "code", "https://fake.example/", "", timedelta(minutes=30), timedelta(0))
_MAX_ROWS = 8  # of a table: at least one of each kind for both users

Cell = tuple[str, str]  # table and column


@dataclass(frozen=True)
class Observation:
    """The facts that must never be altered, those that are only shown, and the reasons of refusals."""

    secret: Facts
    shown: Facts
    refusals: frozenset[str]


class _Observer:
    """Uses the API of a new process, so that no cache answers."""

    def __init__(self, system: FakeSystem, ids: Mapping[str, IntegrationId], states: Mapping[str, str]) -> None:
        self._system, self._ids, self._states = system, ids, states
        self._service: Service = system.another_process()
        self._use_cases = self._service.use_cases
        self._secret: dict[str, frozenset[str]] = {}
        self._shown: dict[str, frozenset[str]] = {}
        self._refusals: set[str] = set()

    async def observe(self) -> Observation:
        """Ask everything that a column could influence."""
        provider = self._system.provider
        for each in (provider, self._system.key_provider):
            for calls in (each.refreshes, each.exchanges, each.revocations, each.polls, each.used_clients):
                cast("list[Any]", calls).clear()
        provider.decisions = [DecisionPending()] * _MAX_ROWS
        for user_id in USERS:
            await self._ask(f"integrations of {user_id}", self._integrations(user_id))
            for name, integration_id in self._ids.items():
                await self._ask(f"{name} for {user_id}", self._one(integration_id, user_id))
                await self._ask(f"credentials of {name} for {user_id}", self._credentials(integration_id, user_id))
                await self._ask(f"checks of {name} for {user_id}", self._checks(integration_id, user_id), shown=True)
            await self._ask(f"stream of {user_id}", self._stream(user_id), shown=True)
        await self._ask("unrouted webhooks", self._unrouted(), shown=True)
        await self._ask("repeated callback", self._repeated_callback())
        await self._ask("revoked", self._revoked())
        await self._ask("polls", self._polls())
        await self._ask("secrets that verify webhooks", self._webhooks())
        await self._ask("secrets that verify webhooks of a client", self._client_webhooks())
        await self._ask("clients", self._clients())
        await self._ask("clients as shown", self._client_states(), shown=True)
        for caller in (*CLIENT_CALLERS, "evil"):
            await self._ask(f"connection of {caller}", self._begun(caller))
        for user_id in USERS:
            for name, integration_id in self._ids.items():
                for kind, consumer in (("unread events", "consumer"), ("events", "another")):
                    question = f"{kind} of {name} for {user_id}"
                    await self._ask(question, self._events(integration_id, user_id, consumer))
        await self._ask("callback", self._callback())
        await self._ask("confirmation", self._confirmation())
        await self._ask("forced refresh", self._forced(self._ids["work"], ADA))
        self._system.clock.advance(timedelta(minutes=56))
        for user_id, name in ((ADA, "work"), (EVE, "eves")):
            await self._ask(f"refreshed settings of {name} for {user_id}", self._settings(self._ids[name], user_id))
        await self._ask("refresh with a client", self._refreshed(self._ids["with a client"]))
        self._secret["refresh tokens that were sent"] = frozenset(provider.refreshes)
        self._secret["clients that were used"] = frozenset(map(repr, provider.used_clients))
        return Observation(self._secret, self._shown, frozenset(self._refusals))

    async def _ask(self, question: str, answer: Awaitable[set[str]], *, shown: bool = False) -> None:
        try:
            found = frozenset(await answer)
        except IntegrationServerError as error:
            found = frozenset()
            self._refusals.add(error.reason)
        except (ValueError, TypeError, ArithmeticError, LookupError, SQLAlchemyError, ConstraintViolated) as error:
            found = frozenset()  # a value that the server cannot have written: INTERNAL, without details
            self._refusals.add(type(error).__name__)
        (self._shown if shown else self._secret)[question] = found

    async def _integrations(self, user_id: UserId) -> set[str]:
        page = await self._use_cases.integration_manager.list_integrations(user_id, "", 100, "")
        return {item for integration in page.items for item in self._of(integration)}

    async def _one(self, integration_id: IntegrationId, user_id: UserId) -> set[str]:
        return self._of(await self._use_cases.integration_manager.get_integration(integration_id, user_id))

    def _of(self, integration: Integration) -> set[str]:
        key = f"shown {integration.integration_id} to {integration.user_id}"
        status = integration.status(self._system.clock()), integration.last_error, integration.error_count
        times = integration.create_time, integration.update_time, integration.last_health_check
        self._shown[key] = self._shown.get(key, frozenset()) | {repr((status, times))}
        if integration.last_error is not None and integration.last_error.error_class == CredentialsUnreadable.reason:
            self._refusals.add(CredentialsUnreadable.reason)
            if integration.name == "" and not integration.config and integration.account_label is None:
                return set()
        fields = "integration_id", "integration_type", "name", "config", "account_label", "scopes", "missing_scopes"
        return {json.dumps([name, integration.integration_id, getattr(integration, name)]) for name in fields}

    async def _credentials(self, integration_id: IntegrationId, user_id: UserId) -> set[str]:
        fresh = await self._use_cases.credentials.get_usable(integration_id, user_id)
        return {repr(asdict(fresh.credentials)), *self._settings_of(fresh.integration)}

    async def _forced(self, integration_id: IntegrationId, user_id: UserId) -> set[str]:
        state = await self._use_cases.credentials.refresh_token(integration_id, user_id, force=True)
        return {"refreshed"} if state.refreshed else set()

    async def _settings(self, integration_id: IntegrationId, user_id: UserId) -> set[str]:
        return self._settings_of((await self._use_cases.credentials.get_usable(integration_id, user_id)).integration)

    def _settings_of(self, integration: Integration) -> set[str]:
        return {json.dumps(integration.config), repr(integration.scopes), integration.integration_type}

    async def _stream(self, user_id: UserId) -> set[str]:
        events = await self._system.change_feed.read_events(ChangeRange(0, 2**62), 0, EventFilter(user_id, None), 1000)
        return {repr(event.event) for event in events}

    async def _checks(self, integration_id: IntegrationId, user_id: UserId) -> set[str]:
        page = await self._use_cases.health_checker.list_health_checks(integration_id, user_id, 50, "")
        return {repr(replace(check, integration=None)) for check in page.items}  # type: ignore[arg-type]

    async def _webhooks(self) -> set[str]:
        accepted = set()
        for number, secret in enumerate(SECRETS):
            signed = request(webhook_body({"id": f"at-{number}", "type": secret}), secret)
            try:
                response = await self._use_cases.webhook_ingestion.receive_webhook("fake", self._states["uid"], signed)
            except CredentialsUnreadable as error:
                self._refusals.add(error.reason)
                continue
            if response not in (UNAUTHORIZED, NOT_FOUND):
                accepted.add(secret)
        events = {"id": "app-event", "account": "account-ada"}, {"id": "by-route", "route": "subscription:account-ada"}
        signed = request(webhook_body(*events), APP_SECRET)
        await self._use_cases.webhook_ingestion.receive_webhook("fake", "app", signed)
        return accepted

    async def _client_webhooks(self) -> set[str]:
        accepted = set()
        for number, secret in enumerate(("wh-1", "wh-2", "wh-evil")):
            signed = request(webhook_body({"id": f"client-{number}", "account": "account-of-client"}), secret)
            receive = self._use_cases.webhook_ingestion.receive_webhook
            if await receive("fake", "app.tenant", signed) not in (UNAUTHORIZED, NOT_FOUND):
                accepted.add(secret)
        return accepted

    async def _clients(self) -> set[str]:
        page = await self._use_cases.oauth_clients.list_oauth_clients("", 50, "", ALL_INTEGRATION_TYPES)
        if any(item.is_altered for item in page.items):
            self._refusals.add(CredentialsUnreadable.reason)
        return {repr((item.name, item.client_id, item.callers)) for item in page.items if not item.is_altered}

    async def _client_states(self) -> set[str]:
        page = await self._use_cases.oauth_clients.list_oauth_clients("", 50, "", ALL_INTEGRATION_TYPES)
        return {repr((item.name, item.alarm, item.create_time, item.update_time)) for item in page.items}

    async def _begun(self, caller: str) -> set[str]:
        request = ConnectionRequest(ADA, "fake", redirect_uri=APP_CALLBACK, oauth_client="tenant", caller=caller)
        await self._use_cases.oauth_connection.begin_connection(request)
        return {"begun"}

    async def _refreshed(self, integration_id: IntegrationId) -> set[str]:
        state = await self._use_cases.credentials.refresh_token(integration_id, ADA, force=True)
        return {"refreshed"} if state.refreshed else set()

    async def _events(self, integration_id: IntegrationId, user_id: UserId, consumer: str) -> set[str]:
        page = await self._use_cases.webhook_delivery.list_webhook_events(integration_id, user_id, consumer, 50, "")
        return {repr((event.event_id, event.event_type, event.payload)) for event in page.items}

    async def _unrouted(self) -> set[str]:
        page = await self._use_cases.unrouted_webhooks.list_unrouted_webhooks("", 50, "", ALL_INTEGRATION_TYPES)
        return {repr(event) for event in page.items}

    async def _callback(self) -> set[str]:
        self._system.provider.account = NewAccount("account-callback", None)
        callback = Callback(state=self._states["started"], code="code", user_id=ADA)
        result = await self._use_cases.oauth_callback.handle_callback(callback)
        return {result.redirect_url, str(result.integration_id), repr(self._system.provider.exchanges[-1])}

    async def _repeated_callback(self) -> set[str]:
        again = await self._use_cases.oauth_callback.handle_callback(Callback(self._states["recent"], "code"))
        return {again.redirect_url, again.confirmation_token, str(again.integration_id)}

    async def _confirmation(self) -> set[str]:
        self._system.provider.account = NewAccount("account-confirmation", None)
        confirmed = await self._use_cases.oauth_callback.confirm_connection(self._states["held"], ADA)
        return {confirmed.redirect_url, str(confirmed.integration_id), repr(self._system.provider.exchanges[-1])}

    async def _revoked(self) -> set[str]:
        for integration_type in ("fake", "fake_key"):
            claims = await self._system.due_work.claim(
                JobKind.REVOCATION, integration_type, 10, claim_duration=timedelta(minutes=1)
            )
            for claim in claims:
                await self._use_cases.revocation_service.retry(claim)
        providers = self._system.provider, self._system.key_provider
        return {f"{each.integration_type} {asdict(sent)}" for each in providers for sent in each.revocations}

    async def _polls(self) -> set[str]:
        poller, duration = self._service.device_poller, timedelta(minutes=1)
        for claim in await self._system.due_work.claim(JobKind.DEVICE_POLL, "fake", 10, claim_duration=duration):
            await poller.poll(claim)
        return {device_code for _, device_code in self._system.provider.polls}


class World:
    """A database that real flows have filled, an older state of it, and another user's rows."""

    def __init__(self, system: FakeSystem) -> None:
        self.system = system
        self.raw = cast("sqlite3.Connection", system.database._connection.connection.driver_connection)
        self.ids: dict[str, IntegrationId] = {}
        self.states: dict[str, str] = {}

    async def fill(self) -> None:
        """Connect, refresh, rename, set webhook secrets, receive events, begin attempts, disconnect."""
        system = self.system
        system.provider.app_secrets = [APP_SECRET]
        work = await self._connect("account-ada", ADA, "work", "acme")
        eves = await self._connect("account-eve", EVE, "eves", "other")
        for row in (work, eves):
            await self._set_secret(row, "first")
            await self._receive(row, "e-1")
        self.states["uid"] = work.uid
        await self._put_client("tenant", "wh-1", CLIENT_CALLERS[:1])
        await self._put_client("another", "wh-another", ["elsewhere"])
        await self._connect("account-of-client", ADA, "with a client", "acme", oauth_client="tenant", caller="backend")
        await system.stores.oauth_clients.set_alarm("fake", "tenant", SecretState.REFUSED)
        gone = [await self._connect("account-gone", user_id, f"gone of {user_id}", "acme") for user_id in USERS]
        system.provider.revoke_error = ProviderUnavailable()
        for row in gone:
            await system.revocation_service.disconnect_integration(row.integration_id, row.user_id)
            del self.ids[row.name]
        system.provider.revoke_error = None
        await system.health_checker.check_health(work.integration_id, ADA)
        self.raw.execute("DELETE FROM authorization_attempts")  # finished ones, which are pruned after some minutes
        await self._attempts(ADA)
        await self._attempts(EVE)
        self.older = self.raw.serialize()

        system.clock.advance(timedelta(minutes=1))
        await self._put_client("tenant", "wh-2", CLIENT_CALLERS)
        await system.stores.oauth_clients.set_alarm("fake", "tenant", SecretState.PREVIOUS_USED)
        for row, secrets in ((work, SECRETS[1:]), (eves, ["eves"])):
            await system.credentials.refresh_token(row.integration_id, row.user_id, force=True)
            change = IntegrationUpdate(f"{row.name} renamed", {"host": f"new-{row.user_id}"}, is_active=True)
            await system.integration_manager.update_integration(row.integration_id, row.user_id, change)
            for secret in secrets:
                await self._set_secret(row, secret)
            await self._receive(row, "e-2")
            await system.webhook_delivery.acknowledge_webhook_events(row.integration_id, row.user_id, "consumer", 1)
        await system.health_checker.check_health(eves.integration_id, EVE)
        system.clock.advance(timedelta(minutes=5))
        for user_id in USERS:
            recent = await system.begin(user_id, redirect_uri=APP_CALLBACK, return_url=RETURN_URL)
            await system.call_back(recent.state)
            self.states.setdefault("recent", recent.state)
        self.start = system.clock.now
        self.image = sqlite3.connect(":memory:")
        self.raw.backup(self.image)
        self.baseline = await self.observe()
        self.known = {
            question: frozenset().union(
                *(items for other, items in self.baseline.secret.items() if _subject(other) == _subject(question))
            )
            for question in self.baseline.secret
        }

    async def _put_client(self, name: str, webhook_secret: str, callers: Sequence[str]) -> None:
        fields = {"callers": tuple(callers), "webhook_secret": webhook_secret, "ends_rotation": True}
        await put_client(self.system, name, f"client secret {webhook_secret}", **fields)

    async def _connect(self, account_id: str, user_id: UserId, name: str, host: str, **fields: str) -> Integration:
        self.system.provider.account = NewAccount(account_id, f"{account_id}@example.com")
        row = await self.system.connect(user_id, name=name, config={"host": host}, **fields)
        self.ids[name] = row.integration_id
        return row

    async def _set_secret(self, row: Integration, secret: str) -> None:
        await self.system.webhook_secrets.set_webhook_secret(row.integration_id, row.user_id, secret, timedelta(days=1))
        self.system.clock.advance(timedelta(seconds=2))

    async def _receive(self, row: Integration, event_id: str) -> None:
        event = {"id": event_id, "account": row.account_id, "route": f"subscription:{row.account_id}"}
        unrouted = {"id": f"{event_id} of {row.user_id}", "account": f"gone-{row.user_id}", "route": "r"}
        signed = request(webhook_body(event, unrouted), APP_SECRET)
        await self.system.another_process().use_cases.webhook_ingestion.receive_webhook("fake", "app", signed)

    async def _attempts(self, user_id: UserId) -> None:
        system = self.system
        fields: dict[str, Any] = {"redirect_uri": APP_CALLBACK, "return_url": RETURN_URL, "config": {"host": user_id}}
        started = await system.begin(user_id, **fields)
        other = await system.begin(user_id, **fields)
        held = await system.call_back(other.state)
        system.provider.device = DEVICE
        await system.begin(user_id)
        system.provider.device = None
        if user_id == ADA:
            self.states |= {"started": started.state, "held": held.confirmation_token}

    async def observe(self) -> Observation:
        """Use the API, and put the database back."""
        try:
            return await _Observer(self.system, self.ids, self.states).observe()
        finally:
            self.restore()

    def restore(self) -> None:
        """Put the database and the clock back."""
        # Not by `deserialize`: it frees the schema, to which the tables of `json_each` still point (SQLite 3.40).
        self.image.backup(self.raw)
        self.raw.execute("PRAGMA foreign_keys = ON")
        self.system.clock.now = self.start

    def attacks(self, cell: Cell) -> Iterator[tuple[str, Sequence[tuple[str, Sequence[Any]]]]]:
        """Named statements that alter one column of one row, or exchange it between two rows."""
        name, column_name = cell
        column = metadata.tables[name].columns[column_name]
        rows = self.raw.execute(f"SELECT rowid, {column_name} FROM {name} LIMIT {_MAX_ROWS}").fetchall()
        older = self._older_values(name, column_name)
        set_value = f"UPDATE {name} SET {column_name} = ? WHERE rowid = ?"
        for row_id, value in rows:
            for other in mutations(column, value):
                yield f"row {row_id} altered", [(set_value, (other, row_id))]
            if older.get(row_id, value) != value:
                yield f"row {row_id} put back", [(set_value, (older[row_id], row_id))]
        for (row_id, value), (other_id, other) in itertools.pairwise(rows):
            if value != other:
                away = -1 if isinstance(value, int) else "away"
                yield (
                    f"rows {row_id} and {other_id} exchanged",
                    [(set_value, (away, row_id)), (set_value, (value, other_id)), (set_value, (other, row_id))],
                )

    def _older_values(self, name: str, column_name: str) -> Mapping[int, Any]:
        older = sqlite3.connect(":memory:")
        older.deserialize(self.older)
        try:
            return dict(older.execute(f"SELECT rowid, {column_name} FROM {name}").fetchall())
        finally:
            older.close()

    async def attack(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> Observation | None:
        """The observation after an attack; None if the database does not accept it."""
        try:
            self.raw.execute("PRAGMA foreign_keys = OFF")
            for statement, parameters in statements:
                self.raw.execute(statement, parameters)
        except sqlite3.IntegrityError:
            self.restore()
            return None
        return await self.observe()

    async def effects(self, cell: Cell) -> tuple[set[str], list[str]]:
        """The effects of all attacks on a column, and the altered values that the API returned or used."""
        effects: set[str] = set()
        shown = False
        altered: list[str] = []
        for name, statements in self.attacks(cell):
            after = await self.attack(statements)
            if after is None:
                continue
            altered += [f"{name}: {fact}" for fact in _added(self.known, after.secret)]
            if CredentialsUnreadable.reason in after.refusals - self.baseline.refusals:
                effects.add("detected")
            elif _added(after.secret, self.baseline.secret):
                effects.add("denial of service")
            if _added(self.baseline.shown, after.shown) or _added(after.shown, self.baseline.shown):
                shown = True
        if shown and "detected" not in effects:
            effects.add("shown")
        return effects, altered


def _subject(question: str) -> str:
    """What a question is about: one integration as one user sees it, or the question itself."""
    return question.partition(" of ")[2] or question


def _added(before: Facts, after: Facts) -> list[str]:
    return [f"{question}: {item}" for question in after for item in after[question] - before.get(question, frozenset())]


def mutations(column: Column[Any], value: object) -> Iterator[object]:
    """Other values of the column, as SQLite stores them."""
    if isinstance(column.type, Boolean):
        yield 1 - cast("int", value)
    elif isinstance(column.type, Integer) and isinstance(value, int):
        yield from (value + 1, 0, 2**40)
    elif isinstance(column.type, LargeBinary) and isinstance(value, bytes):
        yield value[:-1] + bytes([value[-1] ^ 1])
    elif value is None:
        yield _ADDED.get(type(column.type).__name__, "added")
    elif isinstance(value, str) and re.match(r"\d{4}-", value):
        yield from ("2020-01-01 00:00:00.000000", "2031-01-01 00:00:00.000000")
    elif isinstance(value, str) and value[:1] in "[{":
        yield '{"host": "evil.example"}' if value.startswith("{") else '["admin"]'
    else:
        yield f"{value}x"
        yield from {"started": ["callback_pending", "consumed"], "callback_pending": ["started"]}.get(str(value), [])
    if column.nullable and value is not None:
        yield None


_ADDED = {"UtcDateTime": "2031-01-01 00:00:00.000000", "LargeBinary": b"added", "BigInteger": 7, "Float": 7.5}


def declared() -> Mapping[Cell, str]:
    """The effect that the page declares for each column."""
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| ([\w ,]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {(table, column): effect for table, column, effect in rows}


CELLS: list[Cell] = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]


class UnboundAead:
    """Negative control: associated data without the values that decide the use of an encrypted value."""

    def __init__(self, aead: Aead) -> None:
        self._aead = aead

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """Encrypt, bound to table, column, row, user and type only."""
        return await self._aead.encrypt(plaintext, associated_data._replace(bound_values=""))

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        """Decrypt whatever else has changed."""
        return await self._aead.decrypt(encrypted, associated_data._replace(bound_values=""))


async def filled(wrap: Callable[[Aead], Aead] = lambda aead: aead) -> World:
    """A world over a new system."""
    # Waits for a lease end as the clock advances.
    world = World(FakeSystem(dict(CONFIRMING), aead=wrap(FakeAead()), sleep_advances_clock=True))
    await world.fill()
    return world


def test_the_page_has_every_column_and_no_other() -> None:
    assert sorted(declared()) == sorted(CELLS)


async def assert_declared(cells: Sequence[Cell]) -> None:
    """Attack columns: no altered value is returned or used, and the effects are those of the page."""
    world = await filled()
    async with world.system.tasks:
        for cell in cells:
            effects, altered = await world.effects(cell)
            assert altered == [], cell
            assert (", ".join(sorted(effects)) or "none") == declared()[cell], cell


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [("integrations", "user_id"), ("webhook_secrets", "encrypted_secret")],
    ids=".".join,
)
async def test_no_altered_secret_is_returned_or_used(cell: Cell) -> None:
    """Two of the columns of the next test."""
    await assert_declared([cell])


@pytest.mark.slow
@pytest.mark.parametrize("table", sorted({table for table, _ in CELLS} - TESTED_ELSEWHERE))
async def test_no_altered_value_of_any_column_is_returned_or_used(table: str) -> None:
    await assert_declared([cell for cell in CELLS if cell[0] == table])


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        "config",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("account_label", "encrypted_credentials", "name", "scopes")
        ),
    ],
)
async def test_negative_control_without_bound_values_an_altered_value_is_returned(attack: str) -> None:
    """Negative control: the associated data has only table, column, row, user and type."""
    world = await filled(UnboundAead)
    async with world.system.tasks:
        _, altered = await world.effects(("integrations", attack))
        assert altered
