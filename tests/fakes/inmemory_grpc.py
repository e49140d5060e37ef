"""The gRPC edge without gRPC's transport: requests and answers as bytes, handlers behind the interceptor."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from integration_server.rpc.errors import ErrorInterceptor

T = TypeVar("T", bound=Message)

Handler: TypeAlias = Any
"""A `grpc.RpcMethodHandler`, which has no useful type."""

Register = Callable[[Any], None]
"""Adds a servicer to a server, as the generated functions do."""


class RpcError(Exception):
    """What a client would see of a call that failed."""

    def __init__(self, code: grpc.StatusCode, message: str, metadata: Sequence[tuple[str, Any]]) -> None:
        super().__init__(code.name, message)
        self.code = code
        self.message = message
        self.wire = (code, message, tuple(metadata))
        self._status = status_pb2.Status.FromString(dict(metadata).get("grpc-status-details-bin", b""))

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """Reason and domain."""
        return self._detail(error_details_pb2.ErrorInfo)

    @property
    def reason(self) -> str:
        """The reason; empty without one."""
        return self.info.reason

    @property
    def fields(self) -> list[str]:
        """The fields that are wrong."""
        return [violation.field for violation in self._detail(error_details_pb2.BadRequest).field_violations]

    @property
    def retry(self) -> error_details_pb2.RetryInfo:
        """How long to wait."""
        return self._detail(error_details_pb2.RetryInfo)

    @property
    def kinds(self) -> list[str]:
        """The details' types."""
        return [detail.type_url.rpartition(".")[-1] for detail in self._status.details]

    def _detail(self, kind: type[T]) -> T:
        detail_message = kind()
        for detail in self._status.details:
            detail.Unpack(detail_message)  # only where it is of this kind
        return detail_message


class FakeContext:
    """A `grpc.aio.ServicerContext`, as far as it is used. Like gRPC's it can be aborted once."""

    def __init__(self, remaining: float | None = None) -> None:
        self.refused: RpcError | None = None
        self._remaining = remaining

    def time_remaining(self) -> float | None:
        """Seconds that the caller has given the call."""
        return self._remaining

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()
    ) -> None:
        """End the call."""
        if self.refused is not None:
            raise grpc.aio.UsageError("Abort already called!")
        self.refused = RpcError(code, details, trailing_metadata)
        raise grpc.aio.AbortError("Locally aborted.")


class FakeServer:
    """What the generated functions add handlers to."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """The older way, which tells no names; what follows does."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """All methods of a service."""
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class Details(grpc.HandlerCallDetails):
    """Which method is called."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class InMemoryGrpc:
    """Calls the methods of one service."""

    def __init__(self, service: str, register: Register) -> None:
        self._service = service
        self._server = FakeServer()
        self._interceptor = ErrorInterceptor()
        register(self._server)

    async def call(self, method: str, request: Message) -> Any:
        """The answer; of a stream the first one. Raises `RpcError`."""
        handler = await self._handler(method)
        context: Any = FakeContext()
        try:
            response: Any = await _first_response(handler, _received(handler, request), context)
        except grpc.aio.AbortError:
            raise context.refused from None
        return type(response).FromString(handler.response_serializer(response))

    async def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        """The answers of a streaming method, which raise `RpcError`."""
        handler = await self._handler(method)
        return self._responses(handler, _received(handler, request))

    async def _responses(self, handler: Handler, request: Any) -> AsyncIterator[Any]:
        context: Any = FakeContext()
        try:
            async for response in handler.unary_stream(request, context):
                yield response
        except grpc.aio.AbortError:
            raise context.refused from None

    async def _handler(self, method: str) -> Handler:
        details = Details(f"/{self._service}/{method}")

        async def find(details: grpc.HandlerCallDetails) -> Handler:
            return self._server.handlers[details.method]

        return await self._interceptor.intercept_service(find, details)


async def _first_response(handler: Handler, request: Any, context: Any) -> Any:
    if not handler.response_streaming:
        return await handler.unary_unary(request, context)
    async with aclosing(handler.unary_stream(request, context)) as responses:
        return await anext(responses)


def _received(handler: Handler, request: Message) -> Any:
    return handler.request_deserializer(request.SerializeToString())
