"""The OAuth callback endpoint: converts the provider's authorization response into one `HandleCallback` RPC.

The response is the query of a redirect (RFC 6749 §4.1.2), or the form that the browser posts (OAuth 2.0 Form Post
Response Mode). A post from another site is no weaker than a link on it: neither needs a cookie, and the state proves
the authorization attempt of both.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import grpc.aio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from integration_server.domain.content_negotiation import wants_html
from integration_server.domain.return_urls import with_result_params
from integration_server.sidecar.bodies import BodyReader
from integration_server.sidecar.error_mapping import HttpError, to_http_error
from integration_server.sidecar.error_responses import ErrorResponses, http_error_of
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.middleware import mark_verified
from integration_server.sidecar.pages import ResultPages
from integrations.v1.integration_service_pb2 import HandleCallbackRequest, HandleCallbackResponse

# Seconds. The server gives a provider 10 s to exchange the code and 10 s to name the account. A shorter deadline would
# report a failure for a connection that then succeeds.
DEADLINE = 25.0

# Bytes. Codes and states have some hundred bytes each, rarely one or two thousand.
MAX_QUERY = 8 * 1024

# Bytes of the query and the form together. Beside the code, a form may have an id token with a list of groups, and the
# user's name (Apple). It is what the RPC accepts.
MAX_PARAMETERS = 16 * 1024

# `user_id` must never be added: it states which user is signed in, and a browser cannot be trusted to state that. An
# attacker who has a victim finish the attacker's flow could put the victim's name in the link and pass the user check.
_PARAMETERS = ("code", "state", "integration_type", "iss", "error", "error_description")

_FORM_TYPE = "application/x-www-form-urlencoded"

# Sec-Purpose (Chromium, Firefox), Purpose (WebKit, older Chromium), X-Purpose (previews), X-Moz (older Firefox).
_PURPOSE_HEADER = re.compile(r"(.+-)?purpose|x-moz")
_SPECULATION = re.compile(r"pre(fetch|render|view|load|connect)|instant|speculat", re.IGNORECASE)
# A browser discards a response to a prefetch that is not 2xx, stops a prerender with it, and requests the page again
# when the user opens it (WICG nav-speculation).
_SPECULATIVE = HttpError(
    HTTPStatus.SERVICE_UNAVAILABLE, "SPECULATIVE_REQUEST", "This address does not respond to prefetches and previews"
)


class CallbackReceiver:
    """Receives authorization responses.

    `default_return_url` is where a browser continues whose attempt is not known. `refuse_speculative` is False only in
    negative controls.
    """

    def __init__(
        self,
        server: ServerClient,
        pages: ResultPages,
        errors: ErrorResponses,
        bodies: BodyReader,
        default_return_url: str | None = None,
        *,
        refuse_speculative: bool = True,
    ) -> None:
        self._server = server
        self._pages = pages
        self._errors = errors
        self._bodies = bodies
        self._default_return_url = default_return_url
        self._refuse_speculative = refuse_speculative

    async def receive(self, request: Request) -> Response:
        """Handle a request to the callback path, with or without an integration type at its end."""
        if self._refuse_speculative and is_speculative(request.headers):
            return self._errors.http_error(request, _SPECULATIVE)
        has_state = True
        try:
            callback = decode_callback(await self._read_parameters(request), request.path_params)
            has_state = bool(callback.state)
            result = await self._server.handle_callback(callback, timeout=DEADLINE)
        except HTTPException as error:
            return self._failure(request, http_error_of(error), has_state)
        except grpc.aio.AioRpcError as error:
            return self._failure(request, to_http_error(error), has_state)
        mark_verified(request.scope)  # the server has decrypted the state
        return self._result(request, result)

    async def _read_parameters(self, request: Request) -> str:
        """The parameters in the query and in a form, form-encoded. Raises `HTTPException`."""
        query: bytes = request.scope["query_string"]
        if len(query) > MAX_QUERY:
            raise HTTPException(HTTPStatus.REQUEST_URI_TOO_LONG, f"The query is longer than {MAX_QUERY} bytes")
        if request.method != "POST":
            return query.decode("latin-1")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM_TYPE:
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body is not {_FORM_TYPE}")
        async with self._bodies.read(request, MAX_PARAMETERS - len(query) - 1) as form:
            return b"&".join(filter(None, (query, form.strip()))).decode("latin-1")

    def _result(self, request: Request, result: HandleCallbackResponse) -> Response:
        """The response for a handled callback. The server takes `redirect_url` from its allow-list."""
        if not wants_html(request.headers.getlist("accept")):
            return JSONResponse(_to_json(result))
        if result.redirect_url:
            return RedirectResponse(result.redirect_url, HTTPStatus.SEE_OTHER)
        return self._pages.callback_result(result)

    def _failure(self, request: Request, error: HttpError, has_state: bool) -> Response:
        """The response for an error: the browser continues at the attempt's return URL, or else at the default.

        Not where the same request may succeed later, with a reload: then it stays at a page.
        """
        is_final = error.status < HTTPStatus.INTERNAL_SERVER_ERROR and error.status != HTTPStatus.TOO_MANY_REQUESTS
        if is_final and not error.redirect_url and self._default_return_url:
            url = with_result_params(self._default_return_url, success="false", reason=error.reason)
            # Without a state, the response may be in the fragment, which the browser would add to the redirect: an
            # access token could get there (RFC 9110 §10.2.2). A fragment of its own, even an empty one, prevents it.
            error = replace(error, redirect_url=url if has_state else f"{url}#")
        if not has_state and error.reason == "INVALID_FIELD":
            error = replace(error, page="no_response")
        return self._errors.http_error(request, error)


def is_speculative(headers: Headers) -> bool:
    """Whether a browser asks before, or without, its user opening the page: a prefetch, a prerender or a preview."""
    return any(_PURPOSE_HEADER.fullmatch(name) and _SPECULATION.search(value) for name, value in headers.items())


def decode_callback(encoded: str, path_parameters: Mapping[str, str]) -> HandleCallbackRequest:
    """The RPC's request. Raises `HTTPException` if the parameters have two values for one name."""
    values: dict[str, set[str]] = {}
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        values.setdefault(name, set()).add(value)
    parameters = {name: _single_value(name, values.get(name, {""})) for name in _PARAMETERS}
    # The path is registered at the provider, while anybody can write the query.
    parameters.update(path_parameters)
    return HandleCallbackRequest(**parameters, query=encoded)


def _single_value(name: str, values: set[str]) -> str:
    if len(values) > 1:
        # RFC 6749 §3.1: a parameter must not be repeated. Two readers could each take another value.
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The query has the parameter {name} more than once")
    return next(iter(values))


def _to_json(result: HandleCallbackResponse) -> Mapping[str, Any]:
    """The documented fields, always present, and the optional ones that have a value."""
    optional = {name: getattr(result, name) for name in ("message", "reason", "confirmation_token")}
    return {
        "success": result.success,
        "integration_id": result.integration_id or None,
        "redirect_url": result.redirect_url or None,
        **{name: value for name, value in optional.items() if value},
    }
