"""A token endpoint of Authlib's authorization server, which this project did not write.

It has the client credentials grant (RFC 6749 §4.4) and the JWT bearer grant (RFC 7523 §2.1), and verifies everything
that Authlib verifies: signature, issuer, audience, expiry, subject, scopes, and client authentication.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7523 import JWTBearerGrant
from joserfc.jwk import RSAKey

from tests.end_to_end.small_server import Received

Reply = tuple[int, Any]

LIFETIME = 40  # seconds, of a token


@dataclass
class AuthlibServer:
    """One client, its key, and the users for whom it may act. Issued tokens are those of `tokens`."""

    client_id: str
    client_secret: str
    public_key: RSAKey
    audience: str
    users: set[str] = field(default_factory=set)
    scopes: tuple[str, ...] = ("read", "write")
    tokens: list[str] = field(default_factory=list)

    def respond(self, request: Received) -> Reply:
        """The response of the token endpoint."""
        server = _Server(self)
        server.register_grant(ClientCredentialsGrant)
        server.register_grant(_JwtBearer)
        generator = BearerTokenGenerator(lambda **_: secrets.token_urlsafe(24), expires_generator=lambda *_: LIFETIME)
        server.register_token_generator("default", generator)
        return cast(Reply, server.create_token_response(_Request(request)))


class _Client(ClientMixin):
    def __init__(self, owner: AuthlibServer) -> None:
        self.owner = owner

    def get_client_id(self) -> str:
        return self.owner.client_id

    def get_allowed_scope(self, scope: Collection[str] | str) -> str:
        wanted = scope.split() if isinstance(scope, str) else scope
        return " ".join(one for one in wanted or () if one in self.owner.scopes)

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == self.owner.client_secret

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic" and endpoint == "token"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in {"client_credentials", JWTBearerGrant.GRANT_TYPE}


class _Request(OAuth2Request):
    def __init__(self, received: Received) -> None:
        headers = {"Authorization": received.headers["authorization"]} if "authorization" in received.headers else {}
        super().__init__(received.method, "https://as.example/token", headers=headers)
        self.received = received
        self.payload = BasicOAuth2Payload(received.form)

    @property
    def args(self) -> dict[str, str | None]:
        return {}

    @property
    def form(self) -> dict[str, str]:
        return self.received.form


class _Server(AuthorizationServer):
    def __init__(self, owner: AuthlibServer) -> None:
        super().__init__(scopes_supported=list(owner.scopes))
        self.owner = owner

    def query_client(self, client_id: str) -> Any:
        return _Client(self.owner) if client_id == self.owner.client_id else None

    def save_token(self, token: Mapping[str, Any], request: OAuth2Request) -> None:
        self.owner.tokens.append(str(token["access_token"]))

    def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
        return request

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """Authlib tells frameworks what has happened; there is none."""

    def handle_response(self, status: int, body: Any, headers: object) -> Any:
        return status, body


class _JwtBearer(JWTBearerGrant):
    def resolve_issuer_client(self, issuer: str) -> Any:
        return self.server.query_client(issuer)

    def resolve_client_public_key(self, client: _Client) -> RSAKey:
        return client.owner.public_key

    def authenticate_user(self, subject: str) -> str | None:
        return subject if subject in self.server.owner.users else None

    def get_audiences(self) -> list[str]:
        return [self.server.owner.audience]

    def has_granted_permission(self, client: _Client, user: str) -> bool:
        return user in client.owner.users
