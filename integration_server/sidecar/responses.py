"""HTTP responses in the form that the client accepts: a redirect or a page for a browser, JSON for a program."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import Scope

from integration_server.sidecar.error_mapping import HttpError
from integration_server.sidecar.pages import ResultPages
from integrations.v1.integration_service_pb2 import HandleCallbackResponse

# Reasons for requests that are rejected before any RPC, named as in `ErrorReason` where it has one.
_REASONS = {
    HTTPStatus.BAD_REQUEST: "INVALID_FIELD",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    HTTPStatus.REQUEST_URI_TOO_LONG: "QUERY_TOO_LONG",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BODY_TOO_LARGE",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UNSUPPORTED_MEDIA_TYPE",
    HTTPStatus.TOO_MANY_REQUESTS: "QUOTA_EXCEEDED",
    HTTPStatus.SERVICE_UNAVAILABLE: "UNAVAILABLE",
}
_REASON = "reason"  # the name in the state of a request
_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def note_reason(scope: Scope, reason: str) -> None:
    """Note why a request fails, for the log."""
    scope.setdefault("state", {})[_REASON] = reason


def reason_of(scope: Scope) -> str:
    """The reason that `note_reason` was called with; empty for none."""
    return str(scope.get("state", {}).get(_REASON, ""))


class Responses:
    """Makes the responses for callback results and for errors."""

    def __init__(self, pages: ResultPages) -> None:
        self._pages = pages

    def callback_result(self, request: Request, result: HandleCallbackResponse) -> Response:
        """The response for a handled callback. The server takes `redirect_url` from its allow-list."""
        if not _is_browser(request):
            return JSONResponse(_to_json(result))
        if result.redirect_url:
            return RedirectResponse(result.redirect_url, HTTPStatus.SEE_OTHER)
        return self._pages.callback_result(result)

    def http_error(self, request: Request, http_error: HttpError) -> Response:
        """The response for a failed request. Its `redirect_url` comes from the server or from a setting."""
        note_reason(request.scope, http_error.reason)
        fields = {"success": False, "reason": http_error.reason, "message": http_error.message}
        response: Response
        if not _is_browser(request):
            url = {"redirect_url": http_error.redirect_url} if http_error.redirect_url else {}
            response = JSONResponse(fields | url, http_error.status)
        elif http_error.redirect_url:
            return RedirectResponse(http_error.redirect_url, HTTPStatus.SEE_OTHER)
        else:
            response = self._pages.http_error(http_error)
        if http_error.retry_after is not None:
            response.headers["Retry-After"] = str(http_error.retry_after)
        return response

    def http_exception(self, request: Request, error: Exception) -> Response:
        """The response for an `HTTPException`; Starlette's type for handlers is no narrower than `Exception`."""
        exception = cast(HTTPException, error)
        response = self.http_error(request, http_error_of(exception))
        response.headers.update(exception.headers or {})
        return response


def http_error_of(exception: HTTPException) -> HttpError:
    """The error response for an `HTTPException`."""
    status = HTTPStatus(exception.status_code)
    return HttpError(status, _REASONS[status], exception.detail)


def security_headers(policy: str) -> Mapping[str, str]:
    """Headers for every response. URLs here contain codes and states, which must not be stored or forwarded."""
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Vary": "Accept, Sec-Purpose, Purpose, X-Purpose, X-Moz",
    }


def wants_html(accept: str) -> bool:
    """Whether an `Accept` header (RFC 9110 §12.5.1) prefers HTML to JSON. Naming `text/html` wins at equal quality."""
    ranges = dict(map(_media_range, accept.lower().split(",")))
    html, json = _quality(ranges, "text/html"), _quality(ranges, "application/json")
    return html > json or (html == json > 0 and "text/html" in ranges)


def _media_range(element: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in element.split(";"))
    qualities = [match[1] for match in map(_QUALITY.fullmatch, parameters) if match]
    return name, float(qualities[0]) if qualities else 1.0


def _quality(ranges: Mapping[str, float], media_type: str) -> float:
    """The quality in the most specific range that includes the media type; 0 if there is none."""
    group = media_type.partition("/")[0]
    return next((ranges[name] for name in (media_type, f"{group}/*", "*/*") if name in ranges), 0.0)


def _is_browser(request: Request) -> bool:
    return wants_html(",".join(request.headers.getlist("accept")))


def _to_json(result: HandleCallbackResponse) -> Mapping[str, Any]:
    """The documented fields, always present, and the optional ones that have a value."""
    optional = {name: getattr(result, name) for name in ("message", "reason", "confirmation_token")}
    return {
        "success": result.success,
        "integration_id": result.integration_id or None,
        "redirect_url": result.redirect_url or None,
        **{name: value for name, value in optional.items() if value},
    }
