"""The state of the provider and the rules of codes, grants and tokens, without HTTP.

No method awaits, so each call is atomic under concurrent requests.
"""

import hashlib
import re
import secrets
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from integration_server.sandbox.behaviour import Behaviour, Endpoint
from integration_server.sandbox.calendar_store import CalendarStore
from integration_server.sandbox.errors import OAuthError
from integration_server.sandbox.model import (
    SAMPLE_ACCOUNTS,
    SAMPLE_SCOPES,
    AccessToken,
    Account,
    AccountKey,
    AuthorizationCode,
    Client,
    Grant,
    RefreshToken,
    TokenCall,
    TokenPair,
    TokenUse,
)

Clock = Callable[[], datetime]
TokenFactory = Callable[[], str]

CODE_LIFETIME: Final = timedelta(seconds=60)
CODE_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")  # RFC 7636 §4.1


class Sandbox:
    """The state of one provider. `behaviour`, `issuer` and `api_key` may be replaced at any time.

    `scopes` are the supported scopes; the first is the default of a request (RFC 6749 §3.3). `calls` counts the calls
    of each endpoint, `in_flight` those in progress, and `max_in_flight` the maximum in progress at a time.
    `redirected_parameters` has, for each request to /redirect-target, the names of its form parameters, and
    "authorization" if it had that header.
    """

    def __init__(
        self,
        *,
        clock: Clock = lambda: datetime.now(UTC),
        token: TokenFactory = secrets.token_urlsafe,
        accounts: Iterable[Account] = SAMPLE_ACCOUNTS,
        scopes: Iterable[str] = SAMPLE_SCOPES,
        behaviour: Behaviour | None = None,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.issuer = "https://sandbox.example"
        self.accounts = {account.sub: account for account in accounts}
        self.scopes = tuple(scopes)
        self.api_key = AccountKey(token(), token())
        self.calls: Counter[Endpoint] = Counter()
        self.in_flight: Counter[Endpoint] = Counter()
        self.max_in_flight: Counter[Endpoint] = Counter()
        self.token_calls: list[TokenCall] = []
        self.redirected_parameters: list[frozenset[str]] = []
        self.calendars = CalendarStore(clock)
        self.now = clock
        self._token = token
        self.clients: dict[str, Client] = {}
        self._grants: dict[str, Grant] = {}
        self._codes: dict[str, AuthorizationCode] = {}
        self._access_tokens: dict[str, AccessToken] = {}
        self._refresh_tokens: dict[str, RefreshToken] = {}

    @contextmanager
    def count_call(self, endpoint: Endpoint) -> Iterator[None]:
        """Count a call of the endpoint, which is in progress in this block."""
        self.calls[endpoint] += 1
        self.in_flight[endpoint] += 1
        self.max_in_flight[endpoint] = max(self.max_in_flight[endpoint], self.in_flight[endpoint])
        try:
            yield
        finally:
            self.in_flight[endpoint] -= 1

    @property
    def secrets(self) -> set[str]:
        """All codes and tokens that were issued, with the API key and the clients' secrets."""
        clients = {client.client_secret or "" for client in self.clients.values()}
        keys = {self.api_key.key, self.api_key.secret}
        return {*self._codes, *self._access_tokens, *self._refresh_tokens, *keys, *clients} - {""}

    def register_client(
        self,
        client_id: str,
        client_secret: str | None,
        redirect_uris: Iterable[str],
        *,
        name: str | None = None,
    ) -> Client:
        """Add or replace a client. A request's redirect URI must equal one of `redirect_uris`."""
        client = Client(client_id, client_secret, tuple(redirect_uris), name or client_id)
        self.clients[client_id] = client
        return client

    def issue_code(
        self, client: Client, redirect_uri: str, sub: str, scopes: tuple[str, ...], code_challenge: str | None
    ) -> str:
        """The user `sub` grants the requested scopes to the client, limited by `granted_scopes`."""
        limit = self.behaviour.granted_scopes
        granted = scopes if limit is None else tuple(scope for scope in scopes if scope in limit)
        grant = Grant(self._token(), client.client_id, sub, granted)
        self._grants[grant.grant_id] = grant
        code = self._token()
        self._codes[code] = AuthorizationCode(grant, redirect_uri, code_challenge, self.now() + CODE_LIFETIME)
        return code

    def redeem_code(self, client: Client, code: str, redirect_uri: str, code_verifier: str | None) -> TokenPair:
        """RFC 6749 §4.1.3 and RFC 7636 §4.6. Raises `OAuthError` (invalid_grant)."""
        record = self._codes.get(code)
        if record is None or record.grant.client_id != client.client_id:
            raise OAuthError("invalid_grant", "the code is unknown")
        if record.is_spent:
            # RFC 6749 §4.1.2: reuse of a code revokes the tokens that were issued for it.
            self._revoke_grant(record.grant)
            raise OAuthError("invalid_grant", "the code was used before")
        if record.grant.grant_id not in self._grants or self.now() >= record.expire_time:
            raise OAuthError("invalid_grant", "the code is no longer valid")
        if redirect_uri != record.redirect_uri:
            raise OAuthError("invalid_grant", "redirect_uri differs from that of the authorization request")
        if not _verify_pkce(code_verifier, record.code_challenge):
            raise OAuthError("invalid_grant", "code_verifier does not match")
        self._codes[code] = replace(record, is_spent=True)
        if self.behaviour.repeats_tokens and (repeated := self._valid_tokens(record.grant)):
            self._revoke_grant(record.grant)
            return repeated
        refresh_token = self._new_refresh_token(record.grant) if self.behaviour.issue_refresh_token else None
        return self._issue(record.grant, record.grant.scopes, refresh_token)

    def refresh(self, client: Client, refresh_token: str, scopes: tuple[str, ...] | None) -> TokenPair:
        """RFC 6749 §6. `scopes` restricts the access token; None keeps the granted scopes.

        Raises `OAuthError`: invalid_grant, or invalid_scope if scopes were not granted.
        """
        record = self._refresh_tokens.get(refresh_token)
        grant = self._grants.get(record.grant_id) if record else None
        if record is None or grant is None or grant.client_id != client.client_id:
            raise OAuthError("invalid_grant", "the refresh token is not valid")
        if record.spent is not None:
            return self._handle_reuse(record.spent, grant)
        if not set(scopes or ()) <= set(grant.scopes):
            raise OAuthError("invalid_scope", "scope exceeds what was granted")
        return self._refresh(refresh_token, grant, scopes or grant.scopes)

    def find_account(self, access_token: str) -> Account | None:
        """The account of an access token; None if the token is not valid."""
        record = self._access_tokens.get(access_token)
        if record is None or self.now() >= record.expire_time or record.grant_id not in self._grants:
            return None
        return self.accounts[self._grants[record.grant_id].sub]

    def revoke(self, client: Client, token: str) -> None:
        """RFC 7009 §2.1. An unknown or invalid token is not an error (§2.2).

        Raises `OAuthError` (invalid_grant) for another client's token.
        """
        record = self._access_tokens.get(token) or self._refresh_tokens.get(token)
        grant = self._grants.get(record.grant_id) if record else None
        if grant is None:
            return
        if grant.client_id != client.client_id:
            raise OAuthError("invalid_grant", "the token was issued to another client")
        ends = self.behaviour.revocation_ends
        if ends in {"grant", "account"}:
            for other in self.grants_of(grant.sub):
                if ends == "account" or other.client_id == client.client_id:
                    self._revoke_grant(other)
        elif ends == "authorization" or token in self._refresh_tokens:
            self._revoke_grant(grant)
        else:
            self._access_tokens[token] = replace(self._access_tokens[token], expire_time=self.now())

    def grants_of(self, account: str) -> list[Grant]:
        """The active grants of the user with this `sub`, oldest first."""
        return [grant for grant in self._grants.values() if grant.sub == account]

    def revoke_grants(self, account: str) -> None:
        """The user with this `sub` revokes all grants at the provider."""
        for grant in self.grants_of(account):
            self._revoke_grant(grant)

    def expire_access_tokens(self) -> None:
        """Expire all access tokens. Grants and refresh tokens stay valid."""
        now = self.now()
        self._access_tokens = {token: replace(record, expire_time=now) for token, record in self._access_tokens.items()}

    def _valid_tokens(self, grant: Grant) -> TokenPair | None:
        """The newest tokens that an earlier authorization of the grant's client and account has received."""
        for token, access in reversed(self._access_tokens.items()):
            earlier = self._grants.get(access.grant_id)
            if earlier is None or (earlier.client_id, earlier.sub) != (grant.client_id, grant.sub):
                continue
            unspent = (
                name
                for name, refresh in reversed(self._refresh_tokens.items())
                if refresh.grant_id == access.grant_id and refresh.spent is None
            )
            return TokenPair(token, next(unspent, None), earlier.scopes, access.expire_time)
        return None

    def _handle_reuse(self, spent: TokenUse, grant: Grant) -> TokenPair:
        if self.now() - spent.time < timedelta(seconds=self.behaviour.refresh_grace):
            return spent.successor
        if self.behaviour.reuse_revokes_grant:
            self._revoke_grant(grant)
        raise OAuthError("invalid_grant", "the refresh token was used before")

    def _refresh(self, refresh_token: str, grant: Grant, scopes: tuple[str, ...]) -> TokenPair:
        if not self.behaviour.refresh_response_has_refresh_token:
            return self._issue(grant, scopes, None)
        if not self.behaviour.rotate_refresh_tokens:
            return self._issue(grant, scopes, refresh_token)
        successor = self._issue(grant, scopes, self._new_refresh_token(grant))
        self._refresh_tokens[refresh_token] = RefreshToken(grant.grant_id, TokenUse(self.now(), successor))
        return successor

    def _issue(self, grant: Grant, scopes: tuple[str, ...], refresh_token: str | None) -> TokenPair:
        expire_time = self.now() + timedelta(seconds=self.behaviour.access_token_lifetime)
        access_token = self._token()
        self._access_tokens[access_token] = AccessToken(grant.grant_id, expire_time)
        return TokenPair(access_token, refresh_token, scopes, expire_time)

    def _new_refresh_token(self, grant: Grant) -> str:
        refresh_token = self._token()
        self._refresh_tokens[refresh_token] = RefreshToken(grant.grant_id)
        return refresh_token

    def _revoke_grant(self, grant: Grant) -> None:
        self._grants.pop(grant.grant_id, None)


def _verify_pkce(code_verifier: str | None, code_challenge: str | None) -> bool:
    if code_verifier is None or code_challenge is None:
        # RFC 9700 §2.1.1: a verifier without a challenge is a downgrade, and so is the reverse.
        return code_verifier == code_challenge
    digest = hashlib.sha256(code_verifier.encode()).digest()
    computed_challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
    return CODE_VERIFIER.fullmatch(code_verifier) is not None and computed_challenge == code_challenge
