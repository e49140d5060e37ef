"""The JWT bearer grant (RFC 7523 §2.1), with which service accounts get tokens.

The key is one of the account's secrets, or ours. It is used in a thread, and sent nowhere.
"""

from datetime import timedelta
from uuid import uuid4

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import InvalidField, ProviderMisconfigured, ProviderRejected
from integration_server.providers.declaration_tables import Assertion
from integration_server.providers.declaration_templates import texts_in
from integration_server.providers.grants.grant_client import AssertionClient
from integration_server.providers.signing_keys import SigningKey, UnusableKey
from integration_server.providers.url_templates import fill_json, fill_text, template_params

_GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"


async def request_tokens(provider: AssertionClient) -> OAuthTokens:
    """Tokens for a new assertion. Raises `ProviderError`."""
    assertion = _declared(provider)
    try:
        token = await _signing_key(provider).sign(
            _claims(provider), provider.now, timedelta(seconds=assertion.lifetime_seconds)
        )
    except UnusableKey:
        if key_field(provider) is None:
            raise ProviderMisconfigured from None
        raise ProviderRejected("private key", oauth_error="invalid_grant") from None
    standard = {"grant_type": _GRANT_TYPE}
    if assertion.param:
        standard[assertion.param] = token
    if not any("{scope}" in text for text in texts_in(assertion.claims)):
        standard |= provider.scope_params()
    provider = provider.with_attributes(url_params={**provider.url_params, "assertion": token})
    return await provider.request_tokens(provider.token_request(standard), "grant")


async def require_usable_key(provider: AssertionClient) -> None:
    """Raise `InvalidField` if the key of an account's secrets cannot sign, or `ProviderMisconfigured` for ours."""
    try:
        await _signing_key(provider).require_usable()
    except UnusableKey as error:
        field = key_field(provider)
        if field is None:
            raise ProviderMisconfigured from None
        raise InvalidField(f"secret_fields.{field}", f"has a private key that {error}") from None


def key_field(provider: AssertionClient) -> str | None:
    """The secret field that has the key; None if the key is ours."""
    names = template_params(_declared(provider).key or "")
    return next((provider.secret_names[name] for name in names if name in provider.secret_names), None)


def _declared(provider: AssertionClient) -> Assertion:
    if provider.assertion is None:  # which a declaration cannot lack
        raise ProviderMisconfigured
    return provider.assertion


def _signing_key(provider: AssertionClient) -> SigningKey:
    assertion, values = _declared(provider), provider.client_values
    key = provider.private_key if assertion.key is None else fill_text(assertion.key, values)
    key_id = provider.private_key_id if assertion.kid is None and assertion.key is None else assertion.kid
    return SigningKey(
        key or "",
        assertion.algorithm,
        fill_text(assertion.passphrase or "", values) or "",
        fill_text(key_id or "", values) or "",
    )


def _claims(provider: AssertionClient) -> dict[str, object]:
    """The claims (RFC 7523 §3): those without a value, and the standard ones that are empty, are left out."""
    values = {**provider.client_values, "scope": provider.scope_separator.join(provider.required_scopes)}
    claims = {"jti": str(uuid4()), **fill_json(_declared(provider).claims, values)}
    if "aud" not in claims:
        claims["aud"] = provider.token_audience()
    return {name: value for name, value in claims.items() if value != ""}
