"""Grants that secrets obtain, each with the shape of a real provider, on both databases.

Each account is connected, gives credentials, is renewed under a race, fails, is connected again, and disconnected. At
the end no secret is in the log or in a row.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from joserfc import jwt
from joserfc.jwk import RSAKey

from integrations.v1 import integration_pb2
from tests.end_to_end.authlib_server import LIFETIME, AuthlibServer
from tests.end_to_end.declared_types import CLIENT_ID, PEM, Scenario, scenario
from tests.end_to_end.rpc_errors import expect_rpc_error, invalid
from tests.end_to_end.secret_scanner import assert_no_secrets, dump_rows
from tests.end_to_end.small_server import Received
from tests.end_to_end.system import capture_logs
from tests.rsa_key import RSA_KEY

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.quick_on("sqlite")]

PUBLIC = RSAKey.import_key(RSA_KEY.public_key())
ENCRYPTED_PEM = RSA_KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.BestAvailableEncryption(b"a long phrase"),
).decode()
PASSWORD = "pässword of the account"
CLIENT_PASSWORD = "client-password-1"  # Authlib does not decode the form encoding of RFC 6749 §2.3.1
SECRETS = {"secret": [PASSWORD, CLIENT_PASSWORD, PEM[100:160], ENCRYPTED_PEM[100:160], "a long phrase"]}
Reply = tuple[int, Any] | tuple[int, Any, list[tuple[str, str]]]


@asynccontextmanager
async def leaking_nothing(database_url: str) -> AsyncIterator[None]:
    """At the end, neither the log nor a row has a secret."""
    async with capture_logs() as logs:
        yield
    assert_no_secrets(SECRETS, {"log": logs.getvalue().encode(), "rows": await dump_rows(database_url)})


async def live_through(
    run: Scenario,
    account: Mapping[str, Any],
    *,
    expected: Callable[[int], dict[str, str]],
    break_: Callable[[bool], None],
    account_id: str,
    path: str = "/items",
    revoked: bool = True,
) -> None:
    """The life of an account: `expected` are its headers with the n-th token; `break_` makes logins fail, or work."""
    begin = run.clock.shift
    integration = await run.connect_key("", **account)
    integration_id = integration.integration_id
    assert (integration.account_id, integration.status) == (account_id, integration_pb2.STATUS_ACTIVE)
    assert await run.headers(integration_id) == expected(1)
    assert await run.call(integration_id, path) == 200
    assert (await run.health(integration_id)).healthy

    run.clock.shift = begin + timedelta(hours=2)
    found = await asyncio.gather(*(run.headers(integration_id) for _ in range(30)))
    assert found == [expected(2)] * 30

    break_(True)
    refused = await expect_rpc_error(run.connect_key("", **account))
    assert refused.reason == "PROVIDER_REJECTED"
    assert refused.fields == tuple(f"secret_fields.{name}" for name in sorted(account.get("secret_fields", {})))
    run.clock.shift = begin + timedelta(hours=4)
    assert (await expect_rpc_error(run.headers(integration_id))).reason == "REAUTHORIZATION_REQUIRED"
    assert (await run.clients.get(integration_id)).status == integration_pb2.STATUS_EXPIRED
    break_(False)
    again = await run.connect_key("", **account, integration_id=integration_id)
    assert (again.integration_id, again.status) == (integration_id, integration_pb2.STATUS_ACTIVE)
    assert await run.disconnect(integration_id) is revoked
    run.clock.shift = begin


# --- signed JWTs -----------------------------------------------------------------------------------------------------


@dataclass
class AssertionServer:
    """Issues numbered tokens for signed JWTs of several providers; `broken` refuses them."""

    broken: bool = False
    issued: int = 0
    claims: list[dict[str, Any]] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)

    def reset(self) -> None:
        """Count from one again."""
        self.issued = 0

    def set_broken(self, broken: bool) -> None:
        """Refuse further assertions, or accept them."""
        self.broken = broken

    def __call__(self, request: Received) -> Reply:
        """Respond to a request."""
        authorization = request.headers.get("authorization", "")
        if request.path.endswith(("/revoke", "/installation/token")):
            self.revoked.append(request.form["token"] if request.body else authorization.partition(" ")[2])
            return 200, {}
        if request.path.endswith(("/token", "/access_tokens")):
            return self._issue(request, authorization)
        if not authorization.startswith("Bearer at-"):
            return 401, {"error": "invalid_token"}
        return 200, {
            "owner": "sync", "sub": "0a1b2c3d", "email": "ada@sign.example", "id": 7, "login": "ada",
            "accounts": [{"base_uri": "eu", "account_id": "a-1"}],
        }  # fmt: skip

    def _issue(self, request: Received, authorization: str) -> Reply:
        assertion = authorization.partition(" ")[2] or request.form["assertion"]
        read = jwt.decode(assertion, PUBLIC, algorithms=["RS256", "RS512"])
        self.claims.append({**read.claims, "kid": read.header.get("kid")})
        is_client = "/content/" not in request.path or (request.form["client_id"], request.form["client_secret"]) == (
            "c-1",
            "s-1",
        )
        if self.broken or not is_client:
            return 400, {"error": "consent_required" if "/sign/" in request.path else "invalid_grant"}
        self.issued += 1
        token, lifetime = f"at-{self.issued}", 3600
        return 200, {"access_token": token, "token": token, "expires_in": lifetime, "expires_at": lifetime}


@pytest.mark.slow
async def test_signed_jwts(tmp_path: Path, shared_database_url: str) -> None:
    server = AssertionServer()
    hosts = {
        "www.cloud.example": "/cloud",
        "account.sign.example": "/sign",
        "{base}": "/{base}",
        "api.content.example": "/content",
        "api.code.example": "/code",
    }
    more = ("signed_consent", "encrypted_key", "app_installation")
    bearer = lambda number: {"Authorization": f"Bearer at-{number}"}  # noqa: E731
    async with (
        leaking_nothing(shared_database_url),
        scenario(tmp_path, shared_database_url, "service_account", hosts, server, *more) as run,
    ):
        file = {
            "private_key_id": "k-1",
            "private_key": PEM,
            "client_email": "sync@cloud.example",
            "token_uri": f"{run.provider.url}/cloud/token",
        }
        account: dict[str, Any] = {"secret_fields": {"service_account": json.dumps(file, indent=2)}}
        for wrong in (
            PEM,
            json.dumps({**file, "private_key": "x"}),
            json.dumps({**file, "token_uri": "https://evil.example/token"}),
        ):
            error = await expect_rpc_error(run.connect_key("", secret_fields={"service_account": wrong}))
            assert error == invalid("secret_fields.service_account")
            assert "BEGIN PRIVATE" not in error.message.replace("-----BEGIN PRIVATE KEY-----", "")
        assert run.provider.received == []
        account["config"] = {"subject": "ada@salon.example"}
        await live_through(run, account, expected=bearer, break_=server.set_broken, account_id="sync")
        claims = server.claims[-1]
        assert (claims["iss"], claims["sub"], claims["kid"]) == ("sync@cloud.example", "ada@salon.example", "k-1")
        assert server.revoked == ["at-3"]

        server.reset()
        ours = replace(run, integration_type="signed_consent")
        await live_through(
            ours, {"config": {"user": "0a1b2c3d"}}, expected=bearer, break_=server.set_broken,
            account_id="0a1b2c3d", revoked=False,
        )  # fmt: skip
        assert (server.claims[-1]["iss"], server.claims[-1]["sub"]) == (CLIENT_ID, "0a1b2c3d")

        server.reset()
        auth = {"publicKeyID": "p-1", "privateKey": ENCRYPTED_PEM, "passphrase": "a long phrase"}
        app = {"appSettings": {"clientID": "c-1", "clientSecret": "s-1", "appAuth": auth}, "enterpriseID": 7}
        account = {"secret_fields": {"app_config": json.dumps(app)}}
        content = replace(run, integration_type="encrypted_key")
        await live_through(content, account, expected=bearer, break_=server.set_broken, account_id="7")
        assert (server.claims[-1]["iss"], server.claims[-1]["sub"], server.claims[-1]["kid"]) == ("c-1", "7", "p-1")

        server.reset()
        account = {"config": {"installation": "42"}}
        code = replace(run, integration_type="app_installation")
        await live_through(code, account, expected=bearer, break_=server.set_broken, account_id="42")
        assert server.revoked[-1] == "at-3"


# --- logins ----------------------------------------------------------------------------------------------------------


CHALLENGE = [("X-Csrf-Token", "csrf-1"), ("Set-Cookie", "pre=1; Path=/")]


@dataclass
class LoginServer:
    """Logs in with one password at several providers, and knows which sessions are open."""

    broken: bool = False
    issued: int = 0
    open: set[str] = field(default_factory=set)

    def reset(self) -> None:
        """Count from one again."""
        self.issued = 0

    def set_broken(self, broken: bool) -> None:
        """Refuse the password, or accept it."""
        self.broken = broken

    def __call__(self, request: Received) -> Reply:
        """Respond to a request."""
        handlers: dict[str, Callable[[Received], Reply]] = {
            "/pos/authentication/v1/authentication/login": self._pos,
            "/storage/array-1/api/sessions": self._storage,
            "/erp/b1/v1/Login": self._erp,
            "/clinic/v2/challenge": lambda _: (200, {"challenge": {"nonce": 42}}, CHALLENGE),
            "/clinic/v2/sessions": self._clinic,
        }
        if request.path in handlers:
            return handlers[request.path](request)
        session = self._session_of(request)
        if session not in self.open:
            return 401, {}
        if request.method == "DELETE" or request.path.endswith("/Logout"):
            self.open.remove(session)
        return 200, {"guid": "g-1", "uuid": "u-1", "CompanyName": "SBO", "id": 3, "general": {"name": "Café"}}

    def _session_of(self, request: Received) -> str:
        cookie = request.headers.get("cookie", "").removesuffix(";node=2").removeprefix("SESSION=")
        header = request.headers.get("x-auth-token") or request.headers.get("x-session")
        return header or cookie or request.headers.get("authorization", "").removeprefix("Bearer ")

    def _new_session(self, given: str) -> str | None:
        if self.broken or given != PASSWORD:
            return None
        self.issued += 1
        self.open.add(f"s-{self.issued}")
        return f"s-{self.issued}"

    def _pos(self, request: Received) -> Reply:
        session = self._new_session(request.json["clientSecret"])
        token = {"tokenType": "Bearer", "accessToken": session, "expiresIn": 3600}
        return (200, {"status": "SUCCESS", "token": token}) if session else (400, {"code": 10010})

    def _storage(self, request: Received) -> Reply:
        given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        session = self._new_session(given.removeprefix("default/ada:"))
        return (201, {}, [("X-Auth-Token", session), ("X-Session-Id", "17")]) if session else (422, {})

    def _erp(self, request: Received) -> Reply:
        session = self._new_session(request.json["Password"])
        cookies = [("Set-Cookie", f"SESSION={session}; HttpOnly"), ("Set-Cookie", "node=2; Path=/")]
        return (200, {"SessionTimeout": 30}, cookies) if session else (400, {"error": {"message": "Login failed"}})

    def _clinic(self, request: Received) -> Reply:
        names = [request.headers.get(name) for name in ("x-csrf-token", "cookie")]
        if names != ["csrf-1", "pre=1"] or request.form["nonce"] != "42":
            return 400, {}
        session = self._new_session(request.form["password"])
        return (200, session) if session else (403, {})


@pytest.mark.slow
async def test_logins(tmp_path: Path, shared_database_url: str) -> None:
    server = LoginServer()
    hosts = {
        "api.pos.example": "/pos",
        "{host}.storage.example": "/storage/{host}",
        "{host}.erp.example": "/erp/{host}",
        "api.clinic.example": "/clinic",
    }
    more = ("session_header", "session_cookie", "two_logins")
    async with (
        leaking_nothing(shared_database_url),
        scenario(tmp_path, shared_database_url, "pos_login", hosts, server, *more) as run,
    ):
        account: dict[str, Any] = {
            "config": {"location": "l-1"},
            "secret_fields": {"client_id": "pos-client", "client_secret": PASSWORD},
        }
        await live_through(
            run, account, break_=server.set_broken, account_id="g-1", revoked=False,
            expected=lambda number: {"Authorization": f"Bearer s-{number}", "Pos-Location": "l-1"},
        )  # fmt: skip

        server.reset()
        login = {"username": "ada", "password": PASSWORD}
        storage = replace(run, integration_type="session_header")
        account = {"config": {"host": "array-1"}, "secret_fields": login}
        await live_through(
            storage, account, break_=server.set_broken, account_id="u-1",
            expected=lambda number: {"X-Auth-Token": f"s-{number}"},
        )  # fmt: skip
        assert "s-3" not in server.open
        assert run.provider.received[-1].path == "/storage/array-1/api/sessions/17"

        server.reset()
        erp = replace(run, integration_type="session_cookie")
        account = {"config": {"host": "b1", "company": "SBO"}, "secret_fields": login}
        await live_through(
            erp, account, break_=server.set_broken, account_id="SBO",
            expected=lambda number: {"Cookie": f"SESSION=s-{number};node=2"},
        )  # fmt: skip
        assert "s-3" not in server.open

        server.reset()
        clinic = replace(run, integration_type="two_logins")
        account = {"config": {"practice": "p & q"}, "secret_fields": login}
        await live_through(
            clinic, account, break_=server.set_broken, account_id="3", revoked=False,
            expected=lambda number: {"X-Session": f"s-{number}", "X-Csrf": "csrf-1"},
        )  # fmt: skip

        # A session that the API no longer knows is renewed once.
        integration = await erp.connect_key("", config={"host": "b1", "company": "SBO"}, secret_fields=login)
        logins, server.open = server.issued, set[str]()
        assert await erp.call(integration.integration_id, "/Items") == 200
        assert server.issued == logins + 1


# --- a server that this project did not write ------------------------------------------------------------------------

AUTHLIB = """\
integration_type = "acme"
auth_method = "oauth2"
grant = "client_credentials"
token_url = "{url}/token"
scopes = ["read", "write"]
verify_url = "{url}/me"
account_id_field = "sub"
secret_fields = {{ client_id = {{}}, client_secret = {{}} }}
"""
AUTHLIB_ACCOUNT = """\
integration_type = "acme_account"
auth_method = "oauth2"
grant = "jwt_bearer"
token_url = "{url}/token"
token_auth = "none"
scopes = ["read"]
verify_url = "{url}/me"
account_id_field = "sub"
secret_fields = {{ client_id = {{}}, private_key = {{}} }}
config_fields = {{ user = {{ required = false }} }}
assertion = {{ key = "{{private_key}}", claims = {{ iss = "{{client_id}}", sub = "{{user}}" }} }}
"""


async def test_the_grants_at_authlib(tmp_path: Path, shared_database_url: str) -> None:
    authlib = AuthlibServer("client-1", CLIENT_PASSWORD, PUBLIC, "", {"ada"})

    def handle(request: Received) -> Reply:
        if request.path == "/token":
            return authlib.respond(request)
        is_good = request.headers.get("authorization", "").removeprefix("Bearer ") in authlib.tokens
        return (200, {"sub": "me"}) if is_good else (401, {})

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(leaking_nothing(shared_database_url))
        texts = {"acme": AUTHLIB, "acme_account": AUTHLIB_ACCOUNT}
        run = await stack.enter_async_context(
            scenario(tmp_path, shared_database_url, "acme", {}, handle, "acme_account", texts=texts)
        )
        authlib.audience = f"{run.provider.url}/token"
        secret = {"client_id": "client-1", "client_secret": CLIENT_PASSWORD}
        await race_at_authlib(run, authlib, {"secret_fields": secret})
        for wrong in ({**secret, "client_secret": "another"}, {**secret, "client_id": "nobody"}):
            error = await expect_rpc_error(run.connect_key("", secret_fields=wrong))
            assert (error.reason, len(error.fields)) == ("PROVIDER_REJECTED", 2)

        account = replace(run, integration_type="acme_account")
        key = {"client_id": "client-1", "private_key": PEM}
        await race_at_authlib(account, authlib, {"secret_fields": key, "config": {"user": "ada"}})
        await race_at_authlib(account, authlib, {"secret_fields": key})
        for fields, config in (({**key, "client_id": "nobody"}, {}), (key, {"user": "eve"})):
            error = await expect_rpc_error(account.connect_key("", secret_fields=fields, config=config))
            assert error.reason == "PROVIDER_REJECTED"
        authlib.audience = "https://another.example"
        error = await expect_rpc_error(account.connect_key("", secret_fields=key))
        assert error.reason == "PROVIDER_REJECTED"


async def race_at_authlib(run: Scenario, authlib: AuthlibServer, account: Mapping[str, Any]) -> None:
    """Connect, ask for credentials thirty times at once after the expiry, and disconnect."""
    begin, before = run.clock.shift, len(authlib.tokens)
    integration_id = (await run.connect_key("", **account)).integration_id
    assert len(authlib.tokens) == before + 1
    run.clock.shift = begin + timedelta(seconds=LIFETIME)  # less than the leeway of Authlib, which has its own clock
    wanted: list[Awaitable[dict[str, str]]] = [run.headers(integration_id) for _ in range(30)]
    assert await asyncio.gather(*wanted) == [{"Authorization": f"Bearer {authlib.tokens[before + 1]}"}] * 30
    assert len(authlib.tokens) == before + 2
    await run.disconnect(integration_id)
    run.clock.shift = begin
