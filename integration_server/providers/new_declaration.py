"""Declarations for authors to begin with: from the metadata of an authorization server, or with examples to replace.

Metadata is what another party wrote. A value is used only if it is a valid value of its key; it is written as a quoted
text, and quoted in comments as well, so that it can neither end a line nor a text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args
from urllib.parse import urlsplit

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.declaration_tables import TokenAuth
from integration_server.providers.http import ProviderHttp, UrlNotAllowed, origin_of, url_problem

_MAX_LISTED = 60  # scopes in a comment; some servers announce hundreds
_MAX_VALUE = 2048  # characters of a URL, and of a scope far more than any has
_SCOPE = re.compile(r"[\x21-\x7e]{1,256}")
_PREFERRED: Sequence[TokenAuth] = (  # what needs the least set-up first
    *("client_secret_basic", "client_secret_post", "private_key_jwt", "client_secret_jwt", "none"),
)
_USUAL_SCOPES = ("openid", "email", "offline_access")  # for the user's account, and for refresh tokens


class DiscoveryError(Exception):
    """The metadata of an authorization server cannot be used."""


async def discover(http: ProviderHttp, issuer: str) -> Mapping[str, Any]:
    """The metadata of an authorization server (RFC 8414 §3, OpenID Connect Discovery §4). Raises `DiscoveryError`."""
    if problem := url_problem(issuer, dev_mode=http.dev_mode):
        raise DiscoveryError(f"the issuer {problem}")
    if "?" in issuer:
        raise DiscoveryError("the issuer has a query, which no issuer has (RFC 8414 section 2)")
    problems = []
    for url in _metadata_urls(issuer):
        try:
            return await _fetch(http, url, issuer)
        except DiscoveryError as error:
            problems.append(f"{url}: {error}")
    raise DiscoveryError("\n  ".join(["there is no usable metadata:", *problems]))


def _metadata_urls(issuer: str) -> Sequence[str]:
    """Where the metadata may be: RFC 8414 puts the issuer's path behind the well-known one, OpenID Connect before."""
    path = urlsplit(issuer).path.rstrip("/")
    base = issuer.rstrip("/").removesuffix(path)
    urls = (
        f"{base}/.well-known/oauth-authorization-server{path}",
        f"{base}{path}/.well-known/openid-configuration",
        f"{base}/.well-known/openid-configuration{path}",
    )
    return list(dict.fromkeys(urls))


async def _fetch(http: ProviderHttp, url: str, issuer: str) -> Mapping[str, Any]:
    try:
        response = await http.request(
            "GET", url, allowed_origins=[origin_of(url)], headers={"Accept": "application/json"}
        )
    except (ProviderUnavailable, UrlNotAllowed):
        raise DiscoveryError("no complete response from a public address within the limits") from None
    if not response.is_success:
        raise DiscoveryError(f"status {response.status}")
    metadata = response.json
    if not isinstance(metadata, dict):
        raise DiscoveryError("the response is not a JSON object")
    if metadata.get("issuer") != issuer:  # RFC 8414 §3.3: else another server could be described
        raise DiscoveryError(f"is about the issuer {_quoted(metadata.get('issuer'))}, and not exactly {issuer}")
    return metadata


def declaration_from_metadata(integration_type: str, metadata: Mapping[str, Any], *, dev_mode: bool = False) -> str:
    """A declaration in TOML, with comments for what metadata does not say."""
    return "\n".join(_Writer(integration_type, metadata, dev_mode).lines()) + "\n"


class _Writer:
    def __init__(self, integration_type: str, metadata: Mapping[str, Any], dev_mode: bool) -> None:
        self._type, self._metadata, self._dev_mode = integration_type, metadata, dev_mode

    def lines(self) -> Iterator[str]:
        metadata = self._metadata
        yield f"# {self._type.replace('_', ' ').title()}, from the metadata of {_quoted(metadata.get('issuer'))}."
        yield "# Compare each key with the provider's documentation: metadata is often incomplete."
        yield f"integration_type = {_quoted(self._type)}"
        yield 'auth_method = "oauth2"'
        has_page = self._url("authorization_endpoint") is not None
        if not has_page and "client_credentials" in self._texts("grant_types_supported"):
            yield 'grant = "client_credentials"  # no authorization endpoint is announced'
        else:
            yield from self._url_lines("authorize_url", "authorization_endpoint", required=True)
        yield from self._url_lines("token_url", "token_endpoint", required=True)
        yield from self._token_auth()
        yield from self._scopes()
        yield from self._page() if has_page else ()
        yield from self._url_lines("revoke_url", "revocation_endpoint")
        yield from self._verification()
        yield "# What metadata does not say:"
        yield '# api_base_url = "https://…"       for CallProvider'
        yield "# refresh_grace_seconds = 0        how long a used refresh token works; inf if a refresh replaces none"
        yield "# [[rate_limits]] and [webhook]    see docs/adding-a-provider.md"
        if not has_page and "client_credentials" in self._texts("grant_types_supported"):
            yield "[secret_fields]"
            yield 'client_id = { title = "Client id" }'
            yield 'client_secret = { title = "Client secret" }'

    def _url(self, member: str) -> str | None:
        """A URL of the metadata; None if there is none, or none that could be called."""
        url = self._metadata.get(member)
        if not isinstance(url, str) or len(url) > _MAX_VALUE or url_problem(url, dev_mode=self._dev_mode):
            return None
        return url

    def _texts(self, member: str) -> Sequence[str]:
        values = self._metadata.get(member)
        return [text for text in values if isinstance(text, str)] if isinstance(values, list) else []

    def _url_lines(self, key: str, member: str, *, required: bool = False) -> Iterator[str]:
        if (url := self._url(member)) is not None:
            yield f"{key} = {_quoted(url)}"
        elif self._metadata.get(member) is not None:
            yield f"# {key}: {member} is not a URL that could be called: {_quoted(self._metadata[member])}"
        elif required:
            yield f"# {key}: is required, and {member} is not announced"

    def _token_auth(self) -> Iterator[str]:
        announced = self._texts("token_endpoint_auth_methods_supported")
        if not announced:
            yield '# token_auth = "client_secret_basic": none is announced, and this is the default (RFC 8414 §2)'
            return
        known = [name for name in _PREFERRED if name in announced and name in get_args(TokenAuth)]
        if known:
            yield f"token_auth = {_quoted(known[0])}"
        others = [name for name in announced if name not in known[:1]]
        if others:
            yield f"# other ways that are announced: {_listed(others)}"

    def _scopes(self) -> Iterator[str]:
        announced = [scope for scope in self._texts("scopes_supported") if _SCOPE.fullmatch(scope)]
        scopes = [scope for scope in _USUAL_SCOPES if scope in announced]
        yield f"scopes = [{', '.join(map(_quoted, scopes))}]"
        if others := [scope for scope in announced if scope not in scopes]:
            yield f"# other scopes that are announced: {_listed(others)}"

    def _page(self) -> Iterator[str]:
        if self._metadata.get("authorization_response_iss_parameter_supported") is True:
            yield f"issuer = {_quoted(self._metadata['issuer'])}"  # RFC 9207 §3
        if "S256" not in self._texts("code_challenge_methods_supported"):
            yield "# PKCE with S256 is not announced; if the provider refuses it: pkce = false"
        if self._url("device_authorization_endpoint") is not None:
            yield f"# device_authorization_endpoint: {_quoted(self._metadata['device_authorization_endpoint'])}"

    def _verification(self) -> Iterator[str]:
        url = self._url("userinfo_endpoint")
        if url is None:
            yield "# verify_url: a GET that needs a good token; account_id_field: what identifies the account in it"
            return
        yield f"verify_url = {_quoted(url)}"
        yield 'account_id_field = "sub"'
        yield 'account_label_field = "email"'


def _quoted(value: object) -> str:
    """A value as a text of TOML and for messages, on one line: what JSON escapes, TOML reads."""
    text = value if isinstance(value, str) else json.dumps(value)[:_MAX_VALUE]
    printable = "".join(char if char.isprintable() and not "\ud800" <= char <= "\udfff" else "�" for char in text)
    return json.dumps(printable[:_MAX_VALUE], ensure_ascii=False)


def _listed(values: Sequence[str]) -> str:
    more = f", and {len(values) - _MAX_LISTED} more" if len(values) > _MAX_LISTED else ""
    return ", ".join(_quoted(value[:256]) for value in values[:_MAX_LISTED]) + more


_OAUTH2 = """\
authorize_url = "https://{name}.example/oauth/authorize"
token_url = "https://{name}.example/oauth/token"
token_auth = "client_secret_basic"  # or client_secret_post, private_key_jwt, client_secret_jwt, header, none
scopes = ["read"]                   # always requested, and required
# authorize_params = {{ prompt = "consent" }}
# pkce = false                      # only if the provider refuses a code challenge
# revoke_url = "https://{name}.example/oauth/revoke"
# refresh_grace_seconds = 0         # how long a used refresh token works; inf if a refresh replaces none
"""
_API_KEY = """\
api_key_header = "X-Api-Key"        # without it: Authorization: Bearer
# request_headers = {{ Authorization = "Token {{api_key}}" }}    # in place of api_key_header
"""
_BASIC = """\
# basic_username = "{{api_key}}"      # the defaults
# basic_password = "{{api_secret}}"
# required_fields = ["api_key"]     # if only the user name is used
"""
_COMMON = """\
verify_url = "https://api.{name}.example/v1/me"   # a GET that needs good credentials; verify = false if there is none
account_id_field = "id"             # in the response: what identifies the account
account_label_field = "name"        # and its name
api_base_url = "https://api.{name}.example/v1"    # for CallProvider
"""


def example_declaration(integration_type: str, auth_method: AuthMethod) -> str:
    """A declaration with examples to replace."""
    parts = {AuthMethod.OAUTH2: _OAUTH2, AuthMethod.API_KEY: _API_KEY, AuthMethod.BASIC: _BASIC}
    title = integration_type.replace("_", " ").title()
    head = f'# {title}. docs/adding-a-provider.md lists all keys.\nintegration_type = "{integration_type}"\n'
    head += f'display_name = "{title}"\nauth_method = "{auth_method.value}"\n'
    return head + (parts[auth_method] + _COMMON).format(name=integration_type.replace("_", "-"))
