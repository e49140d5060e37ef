"""A fake network, and providers that use it."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx

from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import HttpResponse, ProviderHttp

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

P = TypeVar("P", bound=BaseProvider)


def clock() -> datetime:
    return NOW


class FakeTransport(httpx.MockTransport):
    """Returns the given responses in turn, and records the requests."""

    def __init__(self, *responses: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._responses = list(responses)
        super().__init__(self._respond)

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self._responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    @property
    def request(self) -> httpx.Request:
        """The only request that was sent."""
        (request,) = self.requests
        return request

    @property
    def form(self) -> dict[str, str]:
        """The form in the only request."""
        return dict(httpx.QueryParams(self.request.content.decode()))


def json_response(value: object, status: int = 200, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.Response(status, headers={"Content-Type": "application/json", **names}, text=json.dumps(value))


def http_response(value: object, status: int = 200, **headers: str) -> HttpResponse:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return HttpResponse(status, {name.replace("_", "-"): text for name, text in headers.items()}, body)


def context(
    network: FakeTransport, environment: Mapping[str, str] | None = None, *, dev_mode: bool = False
) -> ProviderContext:
    http = ProviderHttp(clock, transport=network, dev_mode=dev_mode)
    return ProviderContext(http=http, clock=clock, environment=environment or {})


def build_provider(built: type[P], network: FakeTransport, **environment: str) -> P:
    """A provider with client id and secret, built by the factory."""
    name = str(built.integration_type).upper()
    settings = {f"{name}_CLIENT_ID": "our-id", f"{name}_CLIENT_SECRET": "our-secret", **environment}
    provider = registry(context(network, settings), built)[str(built.integration_type)]
    assert isinstance(provider, built)
    return provider


def registry(given: ProviderContext, *built: type[BaseProvider]) -> ProviderRegistry:
    factory = ProviderFactory()
    for one in built:
        factory.register(str(one.integration_type), one)
    return factory.build(given)


def exception_text(error: BaseException) -> str:
    """All text of an exception and of the exceptions that it is chained to."""
    return "\n".join(f"{e} {e!r} {e.args!r} {vars(e)!r}" for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    visited: list[Any] = []
    pending = [error]
    while pending:
        current = pending.pop()
        if current is not None and current not in visited:
            visited.append(current)
            yield current
            pending += [current.__cause__, current.__context__]
