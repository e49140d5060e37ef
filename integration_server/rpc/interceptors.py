"""gRPC's handlers, and what interceptors make of them."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

RpcHandler: TypeAlias = Any
"""A `grpc.RpcMethodHandler` that is there; its types are those of threads."""

Payload: TypeAlias = Any
"""A message, or a stream of them."""

UnaryBehaviour: TypeAlias = Callable[[Payload, Context], Awaitable[Payload]]
StreamBehaviour: TypeAlias = Callable[[Payload, Context], AsyncGenerator[Payload, None]]

_HANDLER_FACTORIES: Mapping[tuple[bool, bool], Callable[..., Handler]] = {  # by whether request and answer are streams
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def unary_behaviour(handler: RpcHandler) -> UnaryBehaviour:
    """What a handler does for one answer."""
    behaviour: UnaryBehaviour = handler.unary_unary or handler.stream_unary
    return behaviour


def stream_behaviour(handler: RpcHandler) -> StreamBehaviour:
    """What a handler does for a stream of answers."""
    behaviour: StreamBehaviour = handler.unary_stream or handler.stream_stream
    return behaviour


def wrap_handler(
    handler: RpcHandler, respond: UnaryBehaviour, respond_stream: StreamBehaviour, *, streams_bytes: bool = False
) -> Handler:
    """A handler of the same kind that does one or the other instead; with `streams_bytes` it is given a stream of them,
    whatever was given before."""
    return _HANDLER_FACTORIES[handler.request_streaming or streams_bytes, handler.response_streaming](
        respond_stream if handler.response_streaming else respond,
        request_deserializer=None if streams_bytes else handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class CachedInterceptorChain(grpc.aio.ServerInterceptor):
    """Interceptors, the outermost first, that look at nothing of a call but its method: what they make of a handler is
    made once. gRPC would have each of them wrap it anew for every call."""

    def __init__(self, *interceptors: grpc.aio.ServerInterceptor) -> None:
        self._interceptors = interceptors
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call, or take what was made of it before."""
        method = handler_call_details.method
        if method not in self._wrapped:
            found = await continuation(handler_call_details)
            wrapped = await self._wrap(found, handler_call_details)
            if found is None:
                return wrapped  # the name is the client's own, who may have any number of them
            self._wrapped[method] = wrapped
        return self._wrapped[method]

    async def _wrap(self, found: Handler, details: grpc.HandlerCallDetails) -> Handler:
        async def inner(_: grpc.HandlerCallDetails) -> Handler:
            return found

        for interceptor in reversed(self._interceptors):
            inner = partial(interceptor.intercept_service, inner)
        return await inner(details)
