"""What the responses of a provider mean, by the statuses of HTTP and the codes that `errors` declares."""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from integration_server.domain.errors import ProviderError, ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.providers.declared_values import as_text
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_values import field_at, text_at, texts_at
from integration_server.providers.provider_model import ProviderModel

MAX_ERROR_SIZE = 1 << 16  # bytes; the longest errors, with a list of problems, have some ten kilobytes

_RESOURCE = re.compile(r"[\w./:-]{1,128}", re.ASCII)  # a provider's name for a part of its API


class ResponseMeaning(ProviderModel):
    """Reads responses: whose fault an error is, and how long it lasts."""

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Whether an API response means that the access token is invalid (RFC 6750 §3.1)."""
        meaning = self._meaning_of(response)
        has_ended = response.status in {401, *self.errors.dead_status}
        return meaning == "invalid_grant" or (has_ended and meaning != "request")

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Whether a response to a verification or revocation means that the credentials are invalid."""
        has_ended = response.status in {401, 403, *self.errors.dead_status}
        is_refused = has_ended or (response.status < 500 and self._has_dead_code(response))
        return is_refused and self._meaning_of(response) != "request"

    def rejects_client(self, response: HttpResponse) -> bool:
        """Whether an error response means that our app or its settings are at fault, and no user's account."""
        return self._meaning_of(response) == "invalid_client"

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Whether a response means that the request may be sent later (RFC 6585 §4, RFC 9110 §15.6.4 and §10.2.3)."""
        return (
            response.status in {429, 503, *self.errors.wait_status}
            or (response.status == 403 and (response.retry_after is not None or self._has_wait_header(response)))
            or self._meaning_of(response) == "temporarily_unavailable"
        )

    def _has_wait_header(self, response: HttpResponse) -> bool:
        headers = self.errors.wait_headers.items()
        return any(response.headers.get(name.lower()) == value for name, value in headers)

    def is_failure(self, response: HttpResponse) -> bool:
        """Whether a response to a verification or revocation with status 2xx means a failure."""
        expected = self.verify.good_fields if self.verify else {}
        return self._has_dead_code(response) or not all(
            text_at(response.json, path) if text == "*" else as_text(field_at(response.json, path)) == text
            for path, text in expected.items()
        )

    def _has_dead_code(self, response: HttpResponse) -> bool:
        """Whether a response of any status has the code of credentials that have ended."""
        return bool(self.errors.dead) and text_at(response.json, self.errors.field) in self.errors.dead

    def proves_credentials(self, response: HttpResponse) -> bool:
        """Whether a response to a verification means that the credentials are valid."""
        good = self.verification and self.verification.good_status
        has_status = response.status in good if good else response.is_success
        return has_status and not self.is_failure(response)

    def _require_good(self, response: HttpResponse, is_good: bool) -> None:  # what the caller found
        # First of all: a request to wait comes with any status, also 403, and says nothing about the credentials.
        if self.is_rate_limited(response):
            raise ProviderUnavailable(retry_after=response.retry_after)
        if self.rejects_client(response):
            raise ProviderMisconfigured
        if not is_good and self.rejects_credentials(response):
            raise ProviderRejected("credentials", needs_new_token=self.rejects_access_token(response))
        if not is_good:
            raise ProviderUnavailable(retry_after=response.retry_after)

    def _meaning_of(self, response: HttpResponse) -> str | None:
        """What `errors` declares about the code of an error response, in the words of RFC 6749 §5.2, or "request"."""
        if not response.is_refusal or len(response.body) > MAX_ERROR_SIZE or not self.errors.codes:
            return None
        whole = response.body.strip().decode("ascii", "replace")
        code = whole if whole in self.errors.codes else self.errors.code_in(response.json)
        return "request" if code in self.errors.request else self.errors.meaning_of(code)

    # --- reasons

    def _reason_of(self, response: HttpResponse) -> str | None:
        """The reason in an error response; a long body is content, and is not parsed."""
        return self.reason_in(response.json) if len(response.body) <= MAX_ERROR_SIZE else None

    def reason_in(self, fields: object) -> str | None:
        """The machine-readable reason in the fields of an error response: a code that is declared, never free text."""
        known = self.known_reasons
        found = (code for path in self.errors.paths for code in texts_at(fields, path))
        return next((code for code in found if code in known), None)

    @property
    def known_reasons(self) -> Collection[str]:
        """The codes that are passed on as reasons."""
        return {*self.errors.reasons, *self.errors.codes}

    @contextmanager
    def adding_reason(self, fields: object) -> Iterator[None]:
        """Add the reason in the fields of a response to the errors that are raised because of it."""
        try:
            yield
        except ProviderError as error:
            error.provider_reason = self.reason_in(fields)
            raise

    # --- parts of the API with limits of their own

    def rate_limit_resource(self, request: ApiRequest) -> str:
        """The part of the API that has rate limits of its own, and that a request belongs to; empty for none."""
        for name, pattern in self.rate_limit_resources.items():
            if match := re.match(f"(?:{pattern})(?=[/?]|$)", request.path):
                return name.format(**match.groupdict())
        return ""

    def reported_resource(self, response: HttpResponse) -> str | None:
        """The part of the API whose limits a response is about: None if it names none, empty for all of them."""
        if self.errors.wait_headers and self.is_rate_limited(response) and not self._has_wait_header(response):
            return ""
        for path in self.rate_limit_resource_paths:
            found: Iterable[str] = ()
            if (header := path.removeprefix("header:")) != path:
                found = [response.headers.get(header, "")]
            elif not response.is_success and len(response.body) <= MAX_ERROR_SIZE:
                found = texts_at(response.json, path)
            for name in found:
                if _RESOURCE.fullmatch(name):
                    return name
        return None
