"""requests: authentication for a request or a `requests.Session`.

`requests.get(url, auth=account.requests())`
"""

from typing import Any
from urllib.parse import urljoin

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import carries, is_same_origin, with_query_params
from integration_server.client.credentials import Credentials, CredentialSource

with needs_extra("requests"):
    from requests import PreparedRequest, Response
    from requests.auth import AuthBase
    from requests.exceptions import UnrewindableBodyError
    from requests.utils import rewind_body


class AccountAuth(AuthBase):
    """Authenticates requests. One object may be used by several sessions and threads."""

    def __init__(self, source: CredentialSource) -> None:
        self._source = source

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put the current credentials on the request, and watch its responses."""
        exchange = _Exchange(self._source, r)
        exchange.authenticate(r)
        r.register_hook("response", exchange.handle_response)
        return r


class _Exchange:
    """One request with its redirects. Its hook sees each response before requests follows a redirect."""

    def __init__(self, source: CredentialSource, request: PreparedRequest) -> None:
        self._source = source
        self._origin = request.url or ""
        self._first = id(request)  # redirects have copies of it
        self._credentials = source.credentials()
        self._is_renewed = False

    def authenticate(self, request: PreparedRequest) -> None:
        """Put the credentials on the request."""
        request.headers.update(self._credentials.headers)
        if self._credentials.query:
            request.url = with_query_params(request.url or "", self._credentials.query)

    def handle_response(self, response: Response, **options: Any) -> Response:  # noqa: ANN401 — what requests passes on
        """Keep the credentials from other origins, and send a rejected request once more."""
        request = response.request
        if id(request) == self._first:
            self._is_renewed = False  # a prepared request may be sent several times
        if not is_same_origin(request.url or "", self._origin):
            return response
        if response.is_redirect:
            if not is_same_origin(_target(response), self._origin):
                self._remove_from(request)  # requests copies this request, and itself removes Authorization only
            return response
        if response.status_code == 401 and not carries(request.url or "", request.headers, self._credentials):
            response = self._repeat(response, options)  # a redirect on the same origin has no parameters of the query
        if response.status_code == 401 and not self._is_renewed:
            rejected, self._credentials = self._credentials, self._renew()
            if not self._credentials.has_same_secret(rejected):
                response = self._repeat(response, options)
        return response

    def _renew(self) -> Credentials:
        self._is_renewed = True
        return self._source.renew(self._credentials)

    def _repeat(self, response: Response, options: dict[str, Any]) -> Response:
        """Send the request again, if its body can be. The response itself otherwise."""
        request = response.request
        if not _rewind(request):
            return response
        response.content  # noqa: B018 — reads the body, which frees the connection
        response.close()
        response.request = request.copy()
        # requests follows redirects from a copy of this very request: the one that the caller has prepared.
        self.authenticate(request)
        repeated: Response = response.connection.send(request, **options)
        repeated.history.append(response)
        repeated.request = request
        return repeated

    def _remove_from(self, request: PreparedRequest) -> None:
        for name in self._credentials.headers:
            request.headers.pop(name, None)


def _target(response: Response) -> str:
    try:
        return urljoin(response.url, response.headers["location"])
    except ValueError:
        return ""


def _rewind(request: PreparedRequest) -> bool:
    """Whether the body can be sent again; a file is set back to where it began."""
    body: object = request.body
    if body is None or isinstance(body, str | bytes):
        return True
    try:
        rewind_body(request)
    except UnrewindableBodyError:
        return False
    return True
