"""Responses for errors, in the form that the client accepts: a redirect or a page for a browser, JSON for a program."""

from http import HTTPStatus
from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from integration_server.domain.content_negotiation import wants_html
from integration_server.sidecar.error_mapping import HttpError
from integration_server.sidecar.middleware import note_reason
from integration_server.sidecar.pages import ResultPages

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


class ErrorResponses:
    """Makes the responses for errors."""

    def __init__(self, pages: ResultPages) -> None:
        self._pages = pages

    def http_error(self, request: Request, http_error: HttpError) -> Response:
        """The response for a failed request. Its `redirect_url` comes from the server or from a setting."""
        note_reason(request.scope, http_error.reason)
        fields = {"success": False, "reason": http_error.reason, "message": http_error.message}
        response: Response
        if not wants_html(request.headers.getlist("accept")):
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
