"""The authorization endpoint and its consent page: RFC 6749 §4.1.1 and §4.1.2, RFC 7636 §4.3, RFC 9207.

There is no sign-in: the user selects one of the sample accounts.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from integration_server.sandbox.errors import OAuthError
from integration_server.sandbox.model import Client
from integration_server.sandbox.pages import ConsentPages
from integration_server.sandbox.parameters import Parameters, read_parameters
from integration_server.sandbox.state import Sandbox

# The consent form sends these fields again, so that the decision is checked like the request.
HIDDEN_FIELDS: Final[tuple[str, ...]] = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
)
# RFC 7636 §4.2: an S256 challenge is the unpadded base64url form of 32 octets.
S256_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Recipient:
    """Where responses may be sent: a known client at a registered redirect URI."""

    client: Client
    redirect_uri: str
    state: str | None


class AuthorizationEndpoint:
    """Asks the user, and applies the decision."""

    def __init__(self, sandbox: Sandbox, pages: ConsentPages) -> None:
        self._sandbox = sandbox
        self._pages = pages

    async def respond(self, request: Request) -> Response:
        """Show the consent page on GET, and apply the decision on POST."""
        try:
            parameters = await read_parameters(request)
            recipient = self._find_recipient(parameters)
        except OAuthError as error:
            # RFC 6749 §4.1.2.1: inform the user and do not redirect, which would be an open redirector.
            return self._pages.render("error.html", 400, message=error.description)
        try:
            self._check(parameters)
            proceed = self._apply_decision if request.method == "POST" else self._show_consent
            return proceed(recipient, parameters)
        except OAuthError as error:
            return self._redirect(recipient, {"error": error.code, "error_description": error.description})

    def _find_recipient(self, parameters: Parameters) -> Recipient:
        if parameters.repeated & {"client_id", "redirect_uri"}:
            raise OAuthError("invalid_request", "client_id or redirect_uri was sent more than once")
        client = self._sandbox.clients.get(parameters.get("client_id"))
        if client is None:
            raise OAuthError("invalid_request", "client_id is unknown")
        redirect_uri = parameters.get("redirect_uri")
        # RFC 9700 §2.1: redirect URIs match exactly.
        if redirect_uri not in client.redirect_uris:
            raise OAuthError("invalid_request", "redirect_uri is not registered for this client")
        return Recipient(client, redirect_uri, parameters.find("state"))

    def _check(self, parameters: Parameters) -> None:
        parameters.require_no_repetition()
        if parameters.get("response_type") != "code":
            raise OAuthError("unsupported_response_type", "response_type must be code")
        if not set(self._scopes_of(parameters)) <= set(self._sandbox.scopes):
            raise OAuthError("invalid_scope", "scope has values that this provider does not support")
        code_challenge = parameters.find("code_challenge")
        if code_challenge is None:
            if self._sandbox.behaviour.require_pkce:
                raise OAuthError("invalid_request", "code_challenge is missing")
            return
        # RFC 7636 §4.3: the default method is plain, which is not supported.
        if parameters.find("code_challenge_method") != "S256":
            raise OAuthError("invalid_request", "code_challenge_method must be S256")
        if not S256_CHALLENGE.fullmatch(code_challenge):
            raise OAuthError("invalid_request", "code_challenge is not an S256 challenge")

    def _scopes_of(self, parameters: Parameters) -> tuple[str, ...]:
        return parameters.find_scopes() or self._sandbox.scopes[:1]

    def _show_consent(self, recipient: Recipient, parameters: Parameters) -> Response:
        hidden_fields = {name: parameters.values[name] for name in HIDDEN_FIELDS if name in parameters.values}
        return self._pages.render(
            "consent.html",
            200,
            client_name=recipient.client.name,
            scopes=self._scopes_of(parameters),
            accounts=self._sandbox.accounts.values(),
            hidden_fields=hidden_fields,
        )

    def _apply_decision(self, recipient: Recipient, form: Parameters) -> Response:
        account = self._sandbox.accounts.get(form.find("account") or "")
        if form.find("decision") == "refuse":
            raise OAuthError("access_denied", "the user refused")
        if form.find("decision") != "allow" or account is None:
            return self._pages.render("error.html", 400, message="the form was not sent by this page")
        code = self._sandbox.issue_code(
            recipient.client,
            recipient.redirect_uri,
            account.sub,
            self._scopes_of(form),
            form.find("code_challenge"),
        )
        return self._redirect(recipient, {"code": code})

    def _redirect(self, recipient: Recipient, response_parameters: dict[str, str]) -> Response:
        if recipient.state is not None:
            response_parameters["state"] = recipient.state
        if self._sandbox.behaviour.send_iss:
            response_parameters["iss"] = self._sandbox.issuer
        # RFC 6749 §3.1.2: the query of the redirect URI is kept.
        separator = "&" if urlsplit(recipient.redirect_uri).query else "?"
        # RFC 9700 §4.12: 303, so that no browser posts the form to the client.
        return RedirectResponse(recipient.redirect_uri + separator + urlencode(response_parameters), status_code=303)
