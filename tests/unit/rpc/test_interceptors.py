"""Interceptors wrap a handler once, in their order, and nothing is kept of methods that are not there."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from integration_server.rpc.interceptors import CachedInterceptorChain, Handler
from tests.fakes.inmemory_grpc import Details


class PrefixInterceptor(grpc.aio.ServerInterceptor):
    """Adds a word to the answer, and counts how often it wraps a handler."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.wrapped = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap it."""
        handler: Any = await continuation(handler_call_details)
        self.wrapped += 1

        async def respond(request: str, context: Any) -> str:
            return f"{self.word} {await handler.unary_unary(request, context)}"

        return handler and grpc.unary_unary_rpc_method_handler(respond)


async def find(details: grpc.HandlerCallDetails) -> Any:
    async def respond(_request: str, _context: Any) -> str:
        return details.method

    return grpc.unary_unary_rpc_method_handler(respond) if details.method.startswith("/there/") else None


async def test_a_handler_is_wrapped_once_from_the_inside_out() -> None:
    outer, inner = PrefixInterceptor("outer"), PrefixInterceptor("inner")
    interceptors = CachedInterceptorChain(outer, inner)
    for method in ("/there/One", "/there/Two", "/there/One"):
        handler: Any = await interceptors.intercept_service(find, Details(method))
        assert await handler.unary_unary("", None) == f"outer inner {method}"
    assert (outer.wrapped, inner.wrapped) == (2, 2)


async def test_nothing_is_kept_of_a_method_that_is_not_there() -> None:
    outer = PrefixInterceptor("outer")
    interceptors = CachedInterceptorChain(outer)
    for number in range(3):
        assert await interceptors.intercept_service(find, Details("/nowhere/Same")) is None
        assert outer.wrapped == number + 1
