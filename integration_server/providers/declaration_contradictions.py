"""Keys of a declaration that contradict each other, or need each other: each is valid by itself."""

from collections.abc import Iterator

from pydantic import (
    BaseModel,
)

from integration_server.providers.declaration import ApiKeyDeclaration, BasicDeclaration, Declaration, OAuth2Declaration
from integration_server.providers.declaration_tables import SECRET_GRANTS, Webhook
from integration_server.providers.declaration_templates import OF_REQUEST, TOKEN_NAMES, texts_in
from integration_server.providers.url_templates import (
    template_params,
)


def problems_between(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Problems of keys that contradict each other, each with its key."""
    if declaration.verify_url is not None and "verify" in declaration.model_fields_set:
        yield "verify_url", "cannot be combined with verify"
    if isinstance(declaration, ApiKeyDeclaration | BasicDeclaration):
        yield from _key_problems(declaration)
    if isinstance(declaration, OAuth2Declaration):
        yield from _oauth_problems(declaration)
    if declaration.webhook is not None:
        yield from _webhook_problems(declaration.webhook)
    for name in sorted(declaration.secret_fields.keys() & declaration.config_fields.keys()):
        yield f"secret_fields.{name}", "is also one of config_fields"
    choose = declaration.lookup and declaration.lookup.choose
    if choose and choose.by not in declaration.config_fields:
        yield "lookup.choose.by", f"names {choose.by!r}, which is not one of config_fields"
    for key, fields in (("config_fields", declaration.config_fields), ("settings", declaration.settings)):
        for name, field in fields.items():
            if field.default is not None and (problem := field.problem_of(field.default)):
                yield f"{key}.{name}.default", problem


def _key_problems(declaration: "ApiKeyDeclaration | BasicDeclaration") -> Iterator[tuple[str, str]]:
    declares_none = "verify" in declaration.model_fields_set
    if not (declaration.verify_url or declaration.verify or declares_none):
        yield "verify", "is required, or verify_url; verify = false says that the API has no request for it"
    if not (declaration.required_fields or declaration.secret_fields):
        yield "required_fields", "is empty, and there are no secret_fields: an account would have no credentials"


_UNUSED_WITH_SECRETS = {"authorize_params", "pkce", "issuer", "keep_callback", "refresh_url", "refresh_params"}
_UNUSED_WITH_LOGIN = {
    *("oauth_token_url", "token_auth", "token_body", "token_headers", "token_params", "resource"),
    *("required_scopes", "scope_separator", "scope_param", "scope_equivalents"),
}


def _oauth_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    if declaration.grant == "authorization_code":
        if declaration.oauth_authorize_url is None:
            yield "authorize_url", "is required"
        if declaration.secret_fields:
            yield "secret_fields", "are not asked for with this grant: a user connects in the browser"
    elif declaration.oauth_authorize_url is not None:
        yield "authorize_url", "is not used with this grant"
    yield from _device_problems(declaration)
    if declaration.oauth_token_url is None and declaration.grant != "login":
        yield "token_url", "is required"
    unused = _UNUSED_WITH_SECRETS if declaration.grant in SECRET_GRANTS else set[str]()
    unused = unused | (_UNUSED_WITH_LOGIN if declaration.grant == "login" else set())
    for name in sorted(unused & declaration.model_fields_set):
        yield type(declaration).model_fields[name].alias or name, f"is not used with the grant {declaration.grant}"
    yield from _assertion_problems(declaration)
    yield from _login_problems(declaration)
    yield from _name_problems(declaration)
    if declaration.revoke_url is not None and declaration.revoke is not None:
        yield "revoke", "cannot be combined with revoke_url, which is its short form"
    if declaration.never_expires and declaration.lifetime is not None:
        yield "lifetime_seconds", "contradicts never_expires"
    headers = " ".join(declaration.token_headers.values())
    if declaration.token_auth == "header" and not ("{client_secret}" in headers or "{basic}" in headers):
        yield "token_headers", "must have {client_secret} or {basic}, because token_auth is header"


_OF_AUTHORIZATION_PAGES = ("issuer", "pkce", "keep_callback", "authorize_params", "scope_param")


def _device_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    declared = declaration.model_fields_set
    if declaration.grant != "device_code":
        for key in sorted(key for key in declared if key.startswith("device_")):
            yield key, "is only used with grant = device_code"
        return
    if declaration.device_authorization_url is None:
        yield "device_authorization_url", "is required"
    if declaration.secret_fields:
        yield "secret_fields", "are not asked for with this grant: a user enters a code"
    for key in _OF_AUTHORIZATION_PAGES:
        if key in declared:
            yield key, "is not used with this grant: no browser returns from the provider"


def _assertion_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    assertion = declaration.assertion
    if declaration.grant != "jwt_bearer":
        if assertion is not None:
            yield "assertion", "is only used with the grant jwt_bearer"
        for key in ("token_headers", "token_params"):
            for name, template in getattr(declaration, key).items():
                if "{assertion}" in template:
                    yield f"{key}.{name}", "has {assertion}, which only the grant jwt_bearer has"
        return
    if assertion is None:
        yield "assertion", "is required with the grant jwt_bearer"
        return
    if not assertion.claims.get("iss"):
        yield "assertion.claims", "has no iss, which says who signs (RFC 7523 §3)"
    for name in ("iat", "exp"):
        if name in assertion.claims:
            yield f"assertion.claims.{name}", "is set by the server; lifetime_seconds is the time between iat and exp"
    templates = [*declaration.token_headers.values(), *declaration.token_params.values()]
    if not assertion.param and not any("{assertion}" in template for template in templates):
        yield "assertion.param", "is empty, and no header or parameter has {assertion}: the JWT would not be sent"
    if assertion.key is not None and not template_params(assertion.key):
        yield "assertion.key", "has no name of a secret: a key cannot be in a declaration"


def _login_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    if declaration.grant != "login":
        if declaration.login:
            yield "login", "is only used with the grant login"
        return
    if not declaration.login:
        yield "login", "is required with the grant login"
    later = {name for request in declaration.login for name in request.keep}
    later |= {*declaration.token_response.keep, *(declaration.lookup.keep if declaration.lookup else ())}
    for index, request in enumerate(declaration.login):
        for name in sorted(later.intersection(_names_in(request))):
            yield f"login.{index}", f"has {{{name}}}, which no earlier request of the login keeps"
        later -= request.keep.keys()


def _name_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    """Names that are declared twice, and keys that would be sent somewhere."""
    declared_names = {*declaration.config_fields, *declaration.settings, *declaration.secret_fields}
    for field, secret_field in declaration.secret_fields.items():
        for name in sorted(declared_names.intersection(secret_field.keep)):
            yield f"secret_fields.{field}.keep.{name}", "is the name of another field"
        declared_names |= secret_field.keep.keys()
    for index, request in enumerate(declaration.login):
        for name in sorted(declared_names.union(OF_REQUEST, TOKEN_NAMES).intersection(request.keep)):
            yield f"login.{index}.keep.{name}", "is the name of another value"
    if declaration.assertion is None or declaration.assertion.algorithm.startswith("HS"):
        return
    signing = {*_names_in([declaration.assertion.key, declaration.assertion.passphrase])}
    signing |= {
        field for field, secret_field in declaration.secret_fields.items() if signing.intersection(secret_field.keep)
    }
    for key in sorted(declaration.model_fields_set):
        value = getattr(declaration, key)
        if key == "assertion":
            value = {**value.model_dump(), "key": None, "passphrase": None}
        for name in sorted(signing.intersection(_names_in(value))):
            field_key = type(declaration).model_fields[key].alias or key
            yield field_key, f"has {{{name}}}, the private key, which signs and is sent nowhere"


def _names_in(value: object) -> Iterator[str]:
    """The names in the templates of a value."""
    dumped = value.model_dump() if isinstance(value, BaseModel) else value
    if isinstance(dumped, list):
        dumped = [item.model_dump() if isinstance(item, BaseModel) else item for item in dumped]
    for text in texts_in(dumped):
        yield from template_params(text)


def _webhook_problems(webhook: Webhook) -> Iterator[tuple[str, str]]:
    if webhook.scheme is not None:
        for key in sorted(webhook.model_fields_set - {"scheme"}):
            yield f"webhook.{key}", "cannot be combined with scheme"
        return
    if webhook.signature_header is None:
        yield "webhook.signature_header", "is required, or scheme"
    if "{body}" not in webhook.signed:
        yield "webhook.signed", "has no {body}, so that anybody could change it"
    if "{timestamp}" in webhook.signed and webhook.timestamp_header is None:
        yield "webhook.signed", "has {timestamp}, but there is no timestamp_header"
    if "{timestamp}" not in webhook.signed and webhook.timestamp_header is not None:
        yield "webhook.timestamp_header", "is not in signed, so that anybody could change it"
    if "{id}" in webhook.signed and webhook.id_header is None:
        yield "webhook.signed", "has {id}, but there is no id_header"
