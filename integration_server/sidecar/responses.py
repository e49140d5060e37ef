"""Answers in the form that the caller asked for: a redirect or a page for a browser, JSON for anyone else."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from integration_server.sidecar.content_negotiation import wants_html
from integration_server.sidecar.error_mapping import HttpError
from integration_server.sidecar.pages import Pages, page_for_error, page_for_outcome
from integrations.v1.integration_service_pb2 import HandleCallbackResponse

# For requests that are refused before any RPC, in the words of `ErrorReason` where it has one.
_REASONS = {
    HTTPStatus.BAD_REQUEST: "INVALID_FIELD",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    HTTPStatus.REQUEST_URI_TOO_LONG: "QUERY_TOO_LONG",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BODY_TOO_LARGE",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "HEADERS_TOO_LARGE",
    HTTPStatus.SERVICE_UNAVAILABLE: "UNAVAILABLE",
}


class Responses:
    """Outcomes and failures as HTTP responses."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def outcome(self, request: Request, outcome: HandleCallbackResponse) -> Response:
        """What came of a callback. `redirect_url` is the server's, which has it from its allow-list."""
        if not _is_browser(request):
            return JSONResponse(_to_json(outcome))
        if outcome.redirect_url:
            return RedirectResponse(outcome.redirect_url, HTTPStatus.SEE_OTHER)
        return self._pages.render(page_for_outcome(outcome), HTTPStatus.OK)

    def http_error(self, request: Request, http_error: HttpError) -> Response:
        """Why there is none."""
        response = (
            self._pages.render(page_for_error(http_error), http_error.status)
            if _is_browser(request)
            else JSONResponse(
                {"success": False, "reason": http_error.reason, "message": http_error.message}, http_error.status
            )
        )
        if http_error.retry_after is not None:
            response.headers["Retry-After"] = str(http_error.retry_after)
        return response

    def http_exception(self, request: Request, error: Exception) -> Response:
        """What was refused with an `HTTPException`."""
        exception = cast(HTTPException, error)  # Starlette's type for handlers knows no narrower one
        status = HTTPStatus(exception.status_code)
        response = self.http_error(request, HttpError(status, _REASONS[status], exception.detail))
        response.headers.update(exception.headers or {})
        return response


def _is_browser(request: Request) -> bool:
    return wants_html(",".join(request.headers.getlist("accept")))


def _to_json(outcome: HandleCallbackResponse) -> Mapping[str, Any]:
    """The documented fields, always there, and the further ones where they say something."""
    document: dict[str, Any] = {
        "success": outcome.success,
        "integration_id": outcome.integration_id or None,
        "redirect_url": outcome.redirect_url or None,
    }
    optional = {
        "message": outcome.message,
        "reason": outcome.reason,
        "confirmation_token": outcome.confirmation_token,
    }
    return document | {name: value for name, value in optional.items() if value}
