"""Interceptors are composed once per method; unknown methods have a handler of their own."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from integration_server.rpc.interceptors import compose, convert_errors, wrap_in_context_manager
from integration_server.rpc.methods import UNKNOWN_METHOD, Behavior, Interceptor, Method
from integration_server.rpc.server import ProtectedHandlers
from tests.fakes.inmemory_grpc import FakeContext

UNARY = Method("/service/Unary")
STREAM = Method("/service/Stream", streams_responses=True)


def prefix(word: str, wrapped: list[str]) -> Interceptor:
    """Return an interceptor that adds a word to requests, and records which methods it wraps."""

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        @asynccontextmanager
        async def prefixed(request: str, _context: Any) -> AsyncIterator[str]:
            yield f"{request} {word}"

        wrapped.append(f"{word} {method.path}")
        return wrap_in_context_manager(method, behavior, prefixed)

    return wrap


async def echo(request: str, _context: Any) -> str:
    return request


async def echo_twice(request: str, _context: Any) -> AsyncGenerator[str, None]:
    yield request
    yield request


async def test_the_first_interceptor_is_the_outermost() -> None:
    wrapped: list[str] = []
    interceptors = [prefix("outer", wrapped), prefix("inner", wrapped)]
    behavior = compose(UNARY, echo, interceptors)
    stream = compose(STREAM, echo_twice, interceptors)
    for _ in range(2):
        assert await behavior("request", None) == "request outer inner"
        assert [response async for response in stream("request", None)] == ["request outer inner"] * 2
    assert wrapped == [f"{word} {method.path}" for method in (UNARY, STREAM) for word in ("inner", "outer")]


def details(path: str) -> Any:
    return SimpleNamespace(method=path, invocation_metadata=())


async def test_each_method_is_wrapped_when_the_server_is_built_and_never_by_a_call() -> None:
    wrapped: list[str] = []
    handlers = ProtectedHandlers([prefix("any", wrapped)], unknown_method=[])
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), handlers)
    paths = {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}
    assert {path.removeprefix("any ") for path in wrapped} == paths
    for path in paths:
        assert handlers.service(details(path)) is handlers.service(details(path))
    assert len(wrapped) == len(paths)


async def test_all_unknown_methods_share_one_handler_that_rejects_them() -> None:
    wrapped: list[str] = []
    unknown_method = [convert_errors(), prefix("unknown", wrapped)]
    handlers = ProtectedHandlers([], unknown_method=unknown_method)
    unknown = handlers.service(details("/no/Such"))
    assert unknown is handlers.service(details("/nor/This"))
    handler: Any = unknown
    assert wrapped == [f"unknown {UNKNOWN_METHOD.path}"]
    context = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await handler.stream_unary("", context)
    assert context.error is not None
    assert (context.error.code, context.error.message) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_a_single_request_is_left_to_the_interceptors_to_read() -> None:
    handlers = ProtectedHandlers([], unknown_method=[])
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), handlers)
    for name in ("Check", "Watch"):
        handler: Any = handlers.service(details(f"/grpc.health.v1.Health/{name}"))
        assert (handler.request_streaming, handler.request_deserializer) == (True, None)
        assert handler.response_streaming == (name == "Watch")
