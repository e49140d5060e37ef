"""The login: declared requests exchange an account's secrets for a session token.

Only a response that says so means that the credentials are wrong: 401, 403, a declared status, or a declared code. Any
other failure may be the provider's, and is repeated later.
"""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.lenient_values import UNREADABLE, field_at
from integration_server.domain.text import has_control_characters
from integration_server.domain.token_response import parse_fields
from integration_server.providers.declaration_tables import MAX_VALUE_LENGTH, LoginRequest
from integration_server.providers.declared_values import as_text
from integration_server.providers.grants.grant_client import LoginClient
from integration_server.providers.http import HttpResponse
from integration_server.providers.response_values import values_outside_json
from integration_server.providers.url_templates import fill_json, fill_text, fill_texts


async def request_tokens(provider: LoginClient) -> OAuthTokens:
    """The session token of a new login. Raises `ProviderError`."""
    *earlier, last = provider.login
    kept: dict[str, str] = {}
    for request in earlier:
        kept |= _kept_values(await _send(provider, request, kept), request)
    response = await _send(provider, last, kept)
    kept |= _kept_values(response, last)
    tokens = provider.tokens_in(response, parse_fields(response))
    return OAuthTokens(
        tokens.access_token,
        expire_time=tokens.expire_time,
        lifetime=tokens.lifetime,
        extras={**kept, **tokens.extras},
    )


async def _send(provider: LoginClient, request: LoginRequest, kept: Mapping[str, str]) -> HttpResponse:
    """The response to a request. Raises `ProviderError` if it is none of a successful login."""
    provider = provider.with_attributes(url_params={**provider.url_params, **kept})
    values = provider.client_values
    headers = fill_texts(request.headers, values)
    if request.basic_username is not None:
        parts = (fill_text(part, values) or "" for part in (request.basic_username, request.basic_password))
        headers["Authorization"] = f"Basic {b64encode(':'.join(parts).encode()).decode()}"  # RFC 7617 §2
    content: dict[str, Any] = {} if request.body is None else {request.body_type: fill_json(request.body, values)}
    response = await provider.send(request.method, request.url, headers=headers, **content)
    with provider.adding_reason(response.json):
        _require_success(provider, request, response)
    return response


def _require_success(provider: LoginClient, request: LoginRequest, response: HttpResponse) -> None:
    """Raise the error that a response to a login means; the codes of RFC 6749 §5.2 count as the declared ones do."""
    fields = parse_fields(response)
    code = provider.oauth_error(fields) if response.is_success or response.is_refusal else None
    has_status = response.status in request.good_status if request.good_status else response.is_success
    is_good = all(as_text(field_at(fields, path)) == text for path, text in request.good_fields.items())
    if provider.is_rate_limited(response) or code == "temporarily_unavailable":
        raise ProviderUnavailable(retry_after=response.retry_after)
    if provider.rejects_client(response) or code == "invalid_client":
        raise ProviderMisconfigured(oauth_error=code)
    if has_status and is_good and code != "invalid_grant":
        return
    is_refused = response.status in request.rejected_status or provider.rejects_credentials(response)
    if is_refused or code == "invalid_grant":
        raise ProviderRejected("credentials", oauth_error="invalid_grant")
    raise ProviderUnavailable(retry_after=response.retry_after, outcome_unknown=response.status >= 500)


def _kept_values(response: HttpResponse, request: LoginRequest) -> Mapping[str, str]:
    """The values to keep of a response. Raises `ProviderUnavailable` if one is missing."""
    fields = {**parse_fields(response), **values_outside_json(response, request.keep.values())}
    values = {name: as_text(field_at(fields, path)) for name, path in request.keep.items()}
    kept = {name: value for name, value in values.items() if isinstance(value, str) and _is_usable(value)}
    if len(kept) < len(request.keep):
        raise ProviderUnavailable("the response to a login lacks a value", outcome_unknown=True)
    return kept


def _is_usable(text: str) -> bool:
    return 0 < len(text) <= MAX_VALUE_LENGTH and UNREADABLE not in text and not has_control_characters(text)
