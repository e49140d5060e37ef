"""gRPC's handlers, and what interceptors make of them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc

from integration_server.rpc.errors import Handler

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

Found: TypeAlias = Any
"""A `grpc.RpcMethodHandler` that is there; its types are those of threads."""

Payload: TypeAlias = Any
"""A message, or a stream of them."""

Answer: TypeAlias = Callable[[Payload, Context], Awaitable[Payload]]
Answers: TypeAlias = Callable[[Payload, Context], AsyncIterator[Payload]]

_MAKES: Mapping[tuple[bool, bool], Callable[..., Handler]] = {  # by whether request and answer are streams
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def answer_of(handler: Found) -> Answer:
    """What a handler does for one answer."""
    behaviour: Answer = handler.unary_unary or handler.stream_unary
    return behaviour


def answers_of(handler: Found) -> Answers:
    """What a handler does for a stream of answers."""
    behaviour: Answers = handler.unary_stream or handler.stream_stream
    return behaviour


def doing(handler: Found, answer: Answer, answers: Answers, *, decodes: bool = True) -> Handler:
    """A handler of the same kind that does one or the other instead; without `decodes` it is given bytes."""
    return _MAKES[handler.request_streaming, handler.response_streaming](
        answers if handler.response_streaming else answer,
        request_deserializer=handler.request_deserializer if decodes else None,
        response_serializer=handler.response_serializer,
    )
