"""The profile of a type that has none written by hand: the behaviour that its declaration describes.

It is made from what is declared alone, and not by the provider's code, so that the suite finds what the code does with
a declaration. Whether the declaration is right, only fixtures of documented responses can show.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from hypothesis import find
from hypothesis.strategies import from_regex

from integration_server.domain.credentials import AuthMethod
from integration_server.providers.base import BaseProvider
from integration_server.providers.declaration_tables import (
    SECRET_GRANTS,
    FieldDeclaration,
    InputField,
    Lookup,
    SecretFieldDeclaration,
    Verify,
)
from integration_server.providers.declaration_tables import LoginRequest as DeclaredRequest
from integration_server.providers.declaration_templates import texts_in
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.url_templates import host_params, template_params
from tests.conformance.fake_server import KEY_ID, key_text
from tests.conformance.profile import (
    Authorize,
    ClientAuthentication,
    Device,
    ErrorResponse,
    GrantAssertion,
    JsonObject,
    Key,
    LoginRequest,
    Profile,
    Renewal,
    Resource,
    Revocation,
    Token,
)

_CLIENT_AUTHENTICATION: Mapping[str, ClientAuthentication] = {
    "client_secret_basic": "basic",
    "client_secret_post": "post",
    "client_secret_jwt": "client_secret_jwt",
    "private_key_jwt": "private_key_jwt",
    "header": "header",
    "none": "none",
}
_VALUES = (  # of fields with a pattern: the first that matches
    *("acme", "acme.example", "1", "1234567890", "ada@example.com", "0a1b2c3d", "2026-01-01", "2026-01", "v1", "EU"),
    *("https://acme.example", "123e4567-e89b-12d3-a456-426614174000", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    *("AC0a1b2c3d4e5f60718293a4b5c6d7e8f9", "+15551234567", "acme (ada@example.com)"),
)
CHOSEN_LABEL = "The chosen account"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SIGNER = "the account"


def derive_profile(provider: BaseProvider) -> Profile:
    """The profile that a provider's declarations describe."""
    return _Derivation(provider).profile()


class _Derivation:
    def __init__(self, provider: BaseProvider) -> None:
        self._provider = provider
        self._signing = self._signing_values()
        self._config = {name: self._field_value(name, field) for name, field in provider.config_fields.items()}
        self._settings = {name: self._field_value(name, field) for name, field in provider.settings.items()}
        self._secrets, self._secret_texts = dict[str, str](), dict[str, str]()
        for name, field in provider.secret_fields.items():
            texts = {kept: self._signing.get(kept) or self._text_in_file(kept) for kept in field.keep}
            file = json.dumps(_tree({path: texts[kept] for kept, path in field.keep.items()}))
            self._secrets[name] = file if field.keep else self._field_value(name, field)
            self._secret_texts |= {**texts, name: self._secrets[name]}
        self._kept = {name: self._kept_value(name) for name in self._kept_names()}
        texts = {
            name: field.text_of(value)
            for fields, values in ((provider.settings, self._settings), (provider.config_fields, self._config))
            for name, field in fields.items()
            if (value := values[name])
        }
        self._values = {**texts, **self._kept}

    def profile(self) -> Profile:
        provider = self._provider
        token = self._token() if isinstance(provider, OAuth2Provider) else None
        own_secrets = bool(provider.secret_fields) or provider.auth_method is not AuthMethod.OAUTH2
        scopes = tuple(provider.required_scopes)
        verify = None if provider.verification is None else self._verification(provider.verification)
        lookup = None if provider.lookup is None else self._lookup(provider.lookup)
        if verify and lookup and _is_same_request(verify, lookup):
            merged = {"response": _merge(verify.response, lookup.response), "optional": lookup.optional}
            verify = lookup = verify.model_copy(update=merged)
        return Profile(
            integration_type=provider.integration_type,
            config=self._config_of(self._config),
            bad_config=dict(self._bad_configs()),
            settings={f"{provider.integration_type.upper()}_{k.upper()}": v for k, v in self._settings.items()},
            scopes=scopes,
            account_id=self._account_value(provider.account_id_field, "$sub"),
            account_label=self._account_value(provider.account_label_field, "$email"),
            api_url=provider.api_base_url and self._render(provider.api_base_url, self._secret_values()),
            request=self._request_headers(),
            request_query=self._request_query(),
            is_exact=True,
            waits=list(self._waits()),
            authorize=self._authorize(),
            device=self._device(),
            token=token,
            login=self._login(),
            renewal=self._renewal(token),
            lookup=lookup,
            verify=verify,
            revoke=self._revocation(token),
            key=self._key() if own_secrets or self._is_secret_grant else None,
        )

    # --- values

    def _field_value(self, name: str, field: InputField) -> str:
        values = field.values if isinstance(field, FieldDeclaration) else {}
        given = [*field.choices, *values, *([field.default] if field.default else [])]
        given += [self._signing[name]] if name in self._signing else []
        given += [f"{name}-of-ada"] if isinstance(field, SecretFieldDeclaration) else []  # none is taken for another
        candidates = [*given, *self._host_values(name), *_VALUES]
        usable = [value for value in candidates if field.problem_of(value) is None]
        fitting = (value for value in usable if self._fits_hosts(name, values.get(value, value)))
        found = next(fitting, None)
        if found is not None:
            return found
        assert field.pattern is not None, f"no value for {name}"
        return find(from_regex(re.compile(field.pattern), fullmatch=True), lambda text: field.problem_of(text) is None)

    def _host_values(self, name: str) -> Iterator[str]:
        """Whole hosts or URLs, for names that stand for one."""
        hosts = [pattern.replace("*", "acme") for pattern in self._provider.host_patterns]
        if f"{{{name}}}" in self._urls():
            yield from (f"https://{host}/{name}" for host in hosts)
        elif any(name in host_params(url) for url in self._urls()):
            yield from hosts

    def _fits_hosts(self, name: str, value: str) -> bool:
        urls = (url.replace(f"{{{name}}}", value) for url in self._urls() if name in host_params(url))
        hosts = (url.partition("://")[2].partition("/")[0] for url in urls)
        patterns = [re.escape(pattern).replace(r"\*", "[a-z0-9-]+") for pattern in self._provider.host_patterns]
        filled = (re.sub(r"\{\w+\}", "acme", host) for host in hosts)
        return all(any(re.fullmatch(pattern, host) for pattern in patterns) for host in filled)

    def _urls(self) -> Iterable[str]:
        urls = [*self._provider.url_templates.values(), getattr(self._provider, "revoke_url", None)]
        return [url for url in urls if url is not None]

    def _signing_values(self) -> Mapping[str, str]:
        """The key that signs assertions, and its passphrase, by their names; empty if the key is our client's."""
        assertion = self._provider.assertion if isinstance(self._provider, OAuth2Provider) else None
        if assertion is None or assertion.key is None:
            return {}
        phrases = dict.fromkeys(template_params(assertion.passphrase or ""), "a long phrase")
        passphrase = re.sub(r"\{\w+\}", "a long phrase", assertion.passphrase or "")
        key = key_text(_SIGNER, assertion.algorithm, passphrase)
        return {**dict.fromkeys(template_params(assertion.key), key), **phrases}

    def _text_in_file(self, name: str) -> str:
        """A value in a secret that is a JSON file."""
        return next(value for value in (f"{name}-1", "acme", *self._host_values(name)) if self._fits_hosts(name, value))

    def _kept_names(self) -> Iterable[str]:
        provider = self._provider
        names = set(provider.lookup.keep) if provider.lookup else set()
        if isinstance(provider, OAuth2Provider):
            names |= {*provider.token_response.keep, *(name.replace("-", "_") for name in provider.keep_callback)}
            names |= {name for request in provider.login for name in request.keep}
        return sorted(names)

    def _kept_value(self, name: str) -> str:
        provider, lookup = self._provider, self._provider.lookup
        if lookup and lookup.choose:
            of_choice = {lookup.choose.id: self._config[lookup.choose.by], lookup.choose.label: CHOSEN_LABEL}
            if (value := of_choice.get(lookup.keep.get(name))) is not None:
                return value
        if any(name in host_params(url) for url in self._urls()):
            return next(value for value in (*_VALUES[:1], *self._host_values(name)) if self._fits_hosts(name, value))
        if pattern := provider.kept_patterns.get(name):
            return next(value for value in (f"{name}-1", *_VALUES) if re.fullmatch(pattern, value))
        account = {provider.account_id_field: "$sub", provider.account_label_field: "$email"}
        return account.get(name) or self._value_of_login(name) or f"{name}-1"

    def _value_of_login(self, name: str) -> str | None:
        """A kept value of a login that cannot be just any text: the token itself, or all cookies of a response."""
        provider = self._provider
        if not isinstance(provider, OAuth2Provider):
            return None
        for request in provider.login:
            path = self._paths_of(request).get(name)
            if request is provider.login[-1] and path == provider.token_response.access_token:
                return "$access_token"
            if path == "cookie:*":
                return self._cookies_of(request) or f"{name}=1;node=2"
        return None

    def _paths_of(self, request: DeclaredRequest) -> Mapping[str, str]:
        """Where the response to a request of a login has the kept values."""
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        return {**request.keep, **(provider.token_response.keep if request is provider.login[-1] else {})}

    def _cookies_of(self, request: DeclaredRequest) -> str:
        """The cookies of a response that have names in the declaration, as a Cookie header has them."""
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        values = {path: self._kept_value(name) for name, path in self._paths_of(request).items() if path != "cookie:*"}
        if request is provider.login[-1] and provider.token_response.access_token != "cookie:*":
            values[provider.token_response.access_token] = "$access_token"
        found = (
            f"{path.removeprefix('cookie:')}={text}" for path, text in values.items() if path.startswith("cookie:")
        )
        return ";".join(found)

    def _account_value(self, field: str | None, value: str) -> str:
        """The account's id or name: a kept value, or a value of the verification's response."""
        if field is None:
            return ""
        if (stored := {**self._config, **self._kept}.get(field)) is not None:
            return stored
        is_same = field == self._provider.account_id_field
        return ("$sub" if is_same else value) if self._provider.verification else ""

    def _secret_values(self) -> Mapping[str, str]:
        """The fields of the account's key, by their names in templates."""
        fields = {"api_key": "k3y-of-ada", "api_secret": "s3cret-of-ada"}
        patterns = self._provider.key_patterns
        for name, pattern in patterns.items():
            usable = (value for value in (fields[name], *_VALUES) if re.fullmatch(pattern, value))
            fields[name] = next(usable, "") or find(from_regex(re.compile(pattern), fullmatch=True), bool)
        return self._secret_texts | {name: fields[name] for name in self._provider.required_fields}

    def _render(self, template: str, more: Mapping[str, str] | None = None) -> str:
        """A template of the profile's language: "{name}" is a value, or "${name}" if only requests have it."""
        values = {"client_id": self._client_id(), **self._values, **(more or {})}
        return re.sub(r"\{([A-Za-z_]\w*)\}", lambda match: values.get(match[1], "${" + match[1] + "}"), template)

    def _render_all(self, templates: Mapping[str, str], more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {name: self._render(template, more) for name, template in templates.items()}

    def _render_json(self, template: Any, more: Mapping[str, str] | None = None) -> Any:
        if isinstance(template, Mapping):
            return {name: self._render_json(value, more) for name, value in template.items()}
        if isinstance(template, list | tuple):
            return [self._render_json(value, more) for value in template]
        return self._render(template, more) if isinstance(template, str) else template

    def _client_id(self) -> str:
        return self._secret_texts.get("client_id", "$client_id")

    def _bad_configs(self) -> Iterator[tuple[str, JsonObject]]:
        for name, field in self._provider.config_fields.items():
            if field.required and field.default is None:
                others = {other: value for other, value in self._config.items() if other != name}
                yield f"config.{name}", self._config_of(others)
            elif field.problem_of("no such value!"):
                place = f"config.{name}.0" if field.separator else f"config.{name}"
                yield place, self._config_of({**self._config, name: "no such value!"})

    def _config_of(self, values: Mapping[str, str]) -> JsonObject:
        """The config with these values: a field with a separator is a list."""
        fields = self._provider.config_fields
        return {name: [value] if fields[name].separator else value for name, value in values.items()}

    # --- requests to the API

    def _request_headers(self) -> dict[str, str]:
        provider = self._provider
        templates = [*provider.request_headers.values(), *provider.request_query.values(), provider.api_base_url or ""]
        templates += provider.api_base_urls.values()
        used = {name for template in templates for name in template_params(template)}
        standard = {}
        if provider.auth_method is AuthMethod.OAUTH2 and "access_token" not in used:
            standard = {"Authorization": "Bearer $access_token"}
        if provider.auth_method is AuthMethod.API_KEY and "api_key" in set(provider.required_fields) - used:
            standard = {"Authorization": "Bearer ${api_key}"}
        return {**standard, **self._render_all(provider.request_headers, self._account_texts())}

    def _request_query(self) -> dict[str, str]:
        return self._render_all(self._provider.request_query, self._account_texts())

    def _account_texts(self) -> Mapping[str, str]:
        """The secrets that requests have beside a token. Without one, they are the credentials, and not known."""
        return self._secret_texts if self._provider.auth_method is AuthMethod.OAUTH2 else {}

    def _key(self) -> Key:
        values = self._secret_values()
        auth = self._request_headers()
        if self._provider.auth_method is AuthMethod.BASIC:
            parts = (self._provider.basic_username, self._provider.basic_password)  # type: ignore[attr-defined]
            pair = ":".join(self._render(part, {"api_key": "", "api_secret": "", **values}) for part in parts)
            auth = {**auth, "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        is_token = self._provider.auth_method is AuthMethod.OAUTH2
        return Key(
            api_key=values.get("api_key", ""),
            api_secret=values.get("api_secret", ""),
            secret_fields=self._secrets,
            secret_values=self._secret_texts,
            auth={} if is_token else auth,
            query={} if is_token else self._request_query(),
        )

    def _resource(self, request: Verify | Lookup, response: object) -> Resource:
        url, _, query = request.url.partition("?")
        is_basic, texts = self._provider.auth_method is AuthMethod.BASIC, self._account_texts()
        return Resource(
            method=request.method,
            url=self._render(url, texts),
            auth={**({} if is_basic else self._request_headers()), **self._render_all(request.headers, texts)},
            requires={**self._render_all(dict(parse_qsl(query)), texts), **self._request_query()},
            body=self._render_json(request.body, texts),
            body_type=request.body_type,
            response=response,
            rejection=self._rejection(),
        )

    def _verification(self, verify: Verify) -> Resource:
        provider = self._provider
        response = _tree(
            {
                **{path: "any" if text == "*" else text for path, text in verify.good_fields.items()},
                **{
                    path: value
                    for path, value in ((provider.account_label_field, "$email"), (provider.account_id_field, "$sub"))
                    if path is not None and path not in {**self._config, **self._kept}
                },
            }
        )
        resource = self._resource(verify, response)
        status = verify.good_status[0] if verify.good_status else 200
        return resource.model_copy(update={"status": status, "is_read": bool(response)})

    def _lookup(self, lookup: Lookup) -> Resource:
        found: Any = {path: self._kept[name] for name, path in lookup.keep.items()}
        if lookup.choose is None:
            return self._looked_up(lookup, _tree(found))
        choose = lookup.choose
        named = _tree(
            {**found, choose.id: self._config[choose.by], **({choose.label: CHOSEN_LABEL} if choose.label else {})}
        )
        other = _tree({choose.id: "another", **({choose.label: "Another"} if choose.label else {})})
        accounts = [other, named]
        return self._looked_up(lookup, _tree({choose.list: accounts}) if choose.list else accounts)

    def _looked_up(self, lookup: Lookup, response: object) -> Resource:
        """The resource of a lookup. Headers and parameters with values that it brings come with later requests only."""
        templates = {**self._provider.request_headers, **self._provider.request_query}
        later = [name for name, template in templates.items() if lookup.keep.keys() & {*template_params(template)}]
        return self._resource(lookup, response).model_copy(update={"optional": later})

    # --- OAuth 2

    @property
    def _is_secret_grant(self) -> bool:
        """Whether tokens are obtained with secrets, and not with a user's decision."""
        return isinstance(self._provider, OAuth2Provider) and self._provider.grant in SECRET_GRANTS

    def _device(self) -> Device | None:
        provider = self._provider
        if not isinstance(provider, OAuth2Provider) or provider.grant != "device_code":
            return None
        scope = provider.scope_separator.join(provider.required_scopes)
        params = {"client_id": self._client_id(), **({"scope": scope} if scope else {})}
        paths = provider.device_response
        response = {
            paths.device_code: "$device_code",
            paths.user_code: "WDJB-MJHT",
            paths.verification_uri or "verification_uri": "https://devices.example/enter",
            paths.interval: 1,  # the shortest: the worker asks on the database's clock, which tests do not set
        }
        optional = {paths.verification_uri_complete: "https://devices.example/enter?code=1", paths.expires_in: 600}
        response |= {path: value for path, value in optional.items() if path is not None}
        pending = provider.errors.pending[0] if provider.errors.pending else "authorization_pending"
        return Device(
            url=self._render(provider.device_authorization_url or ""),
            client=_CLIENT_AUTHENTICATION[provider.device_auth or provider.token_auth],
            params=self._params(params, provider.device_params),
            response=_tree(response),
            pending=ErrorResponse(status=400, body=_tree({provider.errors.field: pending})),
        )

    def _authorize(self) -> Authorize | None:
        provider = self._provider
        if not isinstance(provider, OAuth2Provider) or provider.grant != "authorization_code":
            return None
        callback = {name: self._kept[name.replace("-", "_")] for name in provider.keep_callback}
        if provider.issuer:
            callback["iss"] = self._render(provider.issuer)
        requires = self._render_all(provider.authorize_params)
        if provider.resource:
            requires["resource"] = self._render(provider.resource)
        url, _, query = self._render(provider.oauth_authorize_url).partition("?")
        return Authorize(
            url=url,
            requires={**requires, **dict(parse_qsl(query))},
            scope_separator=provider.scope_separator,
            scope_in=provider.scope_param or "scope",
            has_scopes=bool(provider.scope_param and provider.required_scopes),
            pkce="required" if provider.pkce else "rejected",
            callback=callback,
        )

    def _token(self) -> Token:
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        code = {"grant_type": "authorization_code", "code": "$code", "redirect_uri": "$redirect_uri"}
        if provider.pkce:
            code["code_verifier"] = "$code_verifier"
        refresh = {"grant_type": "refresh_token", "refresh_token": "$refresh_token"}
        device = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": "{device_code}"}
        if provider.grant == "login":
            return Token(
                client="none", form=self._token_form(), response=self._token_response(), lifetime=self._lifetime()
            )
        is_without_client = provider.grant == "jwt_bearer" and provider.token_auth == "none"
        return Token(
            url=self._render(provider.oauth_token_url, self._secret_texts),
            refresh_url=provider.refresh_url and self._render(provider.refresh_url),
            client="assertion" if is_without_client else _CLIENT_AUTHENTICATION[provider.token_auth],
            headers=self._render_all(provider.token_headers),
            body=provider.token_body,
            code=self._params(code, provider.token_params),
            refresh=self._params(refresh, provider.refresh_params),
            secrets=self._params(self._secret_params(), provider.token_params) if self._is_secret_grant else {},
            assertion=self._assertion(),
            device=self._params(device, provider.token_params) if provider.grant == "device_code" else {},
            response=self._token_response(),
            response_scope_separator=provider.scope_separator,
            lifetime=self._lifetime(),
            invalid_grant=self._error("dead", 400),
            invalid_client=self._error("client", 401),
        )

    def _secret_params(self) -> Mapping[str, str]:
        """The standard parameters of a request with secrets."""
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        scope = provider.scope_separator.join(provider.required_scopes)
        params = {provider.scope_param: scope} if scope and provider.scope_param else {}
        assertion = provider.assertion
        if assertion is None:
            return {"grant_type": "client_credentials", **params}
        is_claim = any("{scope}" in text for text in texts_in(assertion.claims))
        signed = {assertion.param: "{assertion}"} if assertion.param else {}
        return {"grant_type": _JWT_BEARER, **signed, **({} if is_claim else params)}

    def _assertion(self) -> GrantAssertion | None:
        provider = self._provider
        assertion = provider.assertion if isinstance(provider, OAuth2Provider) else None
        if assertion is None or not isinstance(provider, OAuth2Provider):
            return None
        scope = provider.scope_separator.join(provider.required_scopes)
        standard = {"jti": "{jti}", "aud": provider.oauth_token_url}
        declared = {name: value for name, value in {**standard, **assertion.claims}.items() if value != ""}
        claims = {name: value for name, value in declared.items() if scope or value != "{scope}"}
        texts = {**self._secret_texts, "scope": scope}
        is_ours = assertion.key is None
        return GrantAssertion(
            algorithm=assertion.algorithm,
            signer="" if is_ours else _SIGNER,
            key_id=self._render(assertion.kid, texts) if assertion.kid else KEY_ID if is_ours else "",
            claims=self._render_json(claims, texts),
            lifetime=assertion.lifetime_seconds,
        )

    def _login(self) -> Sequence[LoginRequest]:
        provider = self._provider
        requests = provider.login if isinstance(provider, OAuth2Provider) else ()
        return [self._login_request(request, is_last=request is requests[-1]) for request in requests]

    def _login_request(self, request: DeclaredRequest, *, is_last: bool) -> LoginRequest:
        kept = {path: self._kept[name] for name, path in self._paths_of(request).items()}
        values = {**request.good_fields, **kept, **(self._token_members() if is_last else {})}
        outside = {path: str(value) for path, value in values.items() if path.partition(":")[0] in {"header", "cookie"}}
        whole = values.get("body:*")
        url, _, query = request.url.partition("?")
        is_basic = request.basic_username is not None
        return LoginRequest(
            method=request.method,
            url=self._render(url),
            requires=self._render_all(dict(parse_qsl(query))),
            headers=self._render_all(request.headers),
            basic=self._render(f"{request.basic_username}:{request.basic_password}") if is_basic else None,
            body=self._render_json(request.body),
            body_type=request.body_type,
            status=request.good_status[0] if request.good_status else 200,
            response=whole or _tree({path: value for path, value in values.items() if path not in outside}),
            response_headers={p.removeprefix("header:"): v for p, v in outside.items() if p.startswith("header:")},
            cookies={p.removeprefix("cookie:"): v for p, v in outside.items() if p.startswith("cookie:")},
            rejections=[
                *(ErrorResponse(status=status) for status in request.rejected_status),
                *([self._error("dead", 400)] if self._provider.errors.dead else ()),
                *(ErrorResponse(status=status) for status in self._provider.errors.dead_status),
                ErrorResponse(status=401),
            ],
        )

    def _token_form(self) -> str:
        """What session tokens look like: a text, or the cookies of a response."""
        provider, own = self._provider, "s3cret-$number"
        assert isinstance(provider, OAuth2Provider)
        if provider.token_response.access_token != "cookie:*":
            return own
        return ";".join(filter(None, (self._cookies_of(provider.login[-1]), f"session={own}", "node=2")))

    def _params(self, standard: Mapping[str, str], declared: Mapping[str, str]) -> Mapping[str, str]:
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        resource = {"resource": provider.resource} if provider.resource else {}
        scope = provider.scope_separator.join(provider.required_scopes)
        params = {**standard, **resource, **declared}
        rendered = self._render_all(params, {"scope": scope, **self._secret_texts})
        is_sent = {name: text for name, text in rendered.items() if params[name]}
        return {name: text for name, text in is_sent.items() if scope or "scope" not in template_params(params[name])}

    def _lifetime(self) -> int | None:
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        if provider.never_expires:
            return None
        assumed = provider.lifetime if self._assumes_lifetime() else None
        return 3600 if assumed is None else int(assumed.total_seconds())

    def _assumes_lifetime(self) -> bool:
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        return provider.lifetime is not None and provider.token_response.expires_in is None

    def _token_response(self) -> JsonObject:
        return _tree(self._token_members())

    def _token_members(self) -> Mapping[str, str | int]:
        """The values of a token response by their paths."""
        provider = self._provider
        assert isinstance(provider, OAuth2Provider)
        paths, members = provider.token_response, dict[str, str | int]()
        members[paths.access_token] = "$access_token"
        if not (self._is_secret_grant or provider.never_expires):
            members[paths.refresh_token] = "$refresh_token"
            if paths.refresh_token_expires_in:
                members[paths.refresh_token_expires_in] = 7_776_000
        if not (provider.never_expires or self._assumes_lifetime()):
            members[paths.expires_in or "expires_in"] = "$expires_in"
        if provider.required_scopes and (provider.scope_param or paths.scope):
            members[paths.scope or "scope"] = "$scope"
        return {**{path: self._kept[name] for name, path in paths.keep.items()}, **members}

    def _renewal(self, token: Token | None) -> Renewal:
        provider = self._provider
        if self._is_secret_grant:
            return Renewal(kind="secrets")
        if token is None or token.lifetime is None:
            return Renewal(kind="never")
        grace = provider.refresh_token_grace
        return Renewal(rotates=grace != timedelta.max, grace=0 if grace == timedelta.max else grace.total_seconds())

    def _revocation(self, token: Token | None) -> Revocation | None:
        provider = self._provider
        if token is None or not isinstance(provider, OAuth2Provider) or provider.revoke_url is None:
            return None
        url, _, query = self._render(provider.revoke_url).partition("?")
        is_bearer = provider.revoke_token == "bearer" or provider.grant == "login"
        headers, params = dict(provider.revoke_headers), dict(provider.revoke_params)
        as_client = not headers and not is_bearer
        if as_client and not params:
            params = {"token": "{token}", "token_type_hint": "{token_type_hint}"}
        return Revocation(
            method=provider.revoke_method,  # type: ignore[arg-type]
            url=url,
            requires={**dict(parse_qsl(query)), **(self._request_query() if is_bearer and not headers else {})},
            client=token.client if as_client else "none",
            auth=self._request_headers() if is_bearer and not headers else self._render_all(headers),
            params=self._render_all(params),
            body_type=provider.revoke_body_type,
            ends=provider.revocation_ends,
        )

    # --- errors

    def _error(self, meaning: str, status: int) -> ErrorResponse:
        errors = self._provider.errors
        codes = errors.dead if meaning == "dead" else errors.client
        code = codes[0] if codes else {"dead": "invalid_grant", "client": "invalid_client"}[meaning]
        return ErrorResponse(status=status, body=_tree({errors.field: code}))

    def _rejection(self) -> ErrorResponse:
        """The response of the API to a token or key that has ended."""
        errors = self._provider.errors
        status = errors.dead_status[0] if errors.dead_status else 401
        return self._error("dead", status) if errors.dead else ErrorResponse(status=status)

    def _waits(self) -> Iterator[ErrorResponse]:
        errors = self._provider.errors
        yield from (ErrorResponse(status=400, body=_tree({errors.field: code})) for code in errors.wait[:1])
        yield from (ErrorResponse(status=status) for status in errors.wait_status[:1])


def _is_same_request(first: Resource, second: Resource) -> bool:
    """Whether one resource is asked for the account and for its values."""
    return (first.method, first.url, first.requires, first.body) == (
        second.method,
        second.url,
        second.requires,
        second.body,
    )


def _merge(first: Any, second: Any) -> Any:
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return second
    return {**first, **{name: _merge(first.get(name), value) for name, value in second.items()}}


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """The object with these values at their dotted paths, in which numbers are positions in lists."""
    root: dict[str, Any] = {}
    for path, value in values.items():
        node = root
        *parents, last = (quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^."]+)', path))
        for name in parents:
            child = node.get(name)
            node[name] = child if isinstance(child, dict) else {}
            node = node[name]
        node[last] = value
    return {name: _with_lists(value) for name, value in root.items()}


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(name.isdigit() for name in node):
        return [_with_lists(node.get(str(index), {})) for index in range(max(map(int, node)) + 1)]
    return {name: _with_lists(value) for name, value in node.items()}
