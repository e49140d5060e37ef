"""gRPC without a transport: messages are serialized, and errors are converted to statuses."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from integration_server.rpc.interceptors import compose, convert_errors
from integration_server.rpc.methods import Interceptor, describe_method
from integration_server.rpc.request_streams import RequestStream

T = TypeVar("T", bound=Message)

Register = Callable[[Any], None]
"""Adds a servicer to a server, as the generated functions do."""


class RpcError(Exception):
    """The error that a client gets for a failed call."""

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
        """The invalid fields."""
        return [violation.field for violation in self._detail(error_details_pb2.BadRequest).field_violations]

    @property
    def retry(self) -> error_details_pb2.RetryInfo:
        """The delay before a retry."""
        return self._detail(error_details_pb2.RetryInfo)

    @property
    def kinds(self) -> list[str]:
        """The types of the details."""
        return [detail.type_url.rpartition(".")[-1] for detail in self._status.details]

    def _detail(self, detail_type: type[T]) -> T:
        detail_message = detail_type()
        for detail in self._status.details:
            detail.Unpack(detail_message)  # does nothing for other types
        return detail_message


class FakeContext:
    """The used part of a `grpc.aio.ServicerContext`. Like the context of gRPC, it can be aborted once."""

    def __init__(
        self,
        *,
        remaining: float | None = None,
        token: str | None = None,
        metadata: Sequence[tuple[str, Any]] = (),
        certificate: bytes | None = None,
        peer: str = "ipv4:10.0.0.1:50000",
        is_client_gone: bool = False,
    ) -> None:
        self.error: RpcError | None = None
        self.trailing_metadata: Sequence[tuple[str, Any]] = ()
        self._remaining = remaining
        self._metadata = [*metadata, *([] if token is None else [("authorization", f"Bearer {token}")])]
        self._certificate = certificate
        self._peer = peer
        self._is_client_gone = is_client_gone

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        """The metadata, with the bearer token if there is one."""
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """The certificate, if there is one."""
        return {} if self._certificate is None else {"x509_pem_cert": [self._certificate]}

    def peer(self) -> str:
        """The address of the caller."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return self._remaining

    def code(self) -> grpc.StatusCode:
        """The status of the call so far."""
        return grpc.StatusCode.OK if self.error is None else self.error.code

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, Any]]) -> None:
        """Set the metadata after the response."""
        self.trailing_metadata = trailing_metadata

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()
    ) -> None:
        """End the call."""
        if self.error is not None:
            raise grpc.aio.UsageError("Abort already called!")
        self.error = RpcError(code, details, trailing_metadata)
        if self._is_client_gone:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch")
        raise grpc.aio.AbortError("Locally aborted.")


async def _nothing_further() -> AsyncIterator[Message]:
    further: Sequence[Message] = ()
    for request in further:
        yield request


class InMemoryGrpc:
    """A client of servicers. `interceptors` are applied inside `convert_errors`."""

    def __init__(self, service: str, register: Register, interceptors: Sequence[Interceptor] = ()) -> None:
        self._service = service
        self._interceptors = (convert_errors(), *interceptors)
        self._handlers: Mapping[str, Any] = {}
        register(self)

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Ignore these: the generated code registers the same handlers in the next method too."""

    def add_registered_method_handlers(self, _service: str, handlers: Mapping[str, Any]) -> None:
        """Keep the handlers of the service."""
        self._handlers = handlers

    async def call(self, method: str, request: Message, context: FakeContext | None = None) -> Any:
        """Return the response; of a stream, the first one. Raises `RpcError`."""
        async with aclosing(self._responses(method, request, context or FakeContext())) as responses:
            return await anext(responses)

    async def stream(
        self, method: str, request: Message, context: FakeContext | None = None
    ) -> AsyncGenerator[Any, None]:
        """Return the responses of a streaming method, which raise `RpcError`."""
        return self._responses(method, request, context or FakeContext())

    async def _responses(self, name: str, request: Message, context: Any) -> AsyncGenerator[Any, None]:
        handler, method = self._handlers[name], describe_method(f"/{self._service}/{name}")
        kind = handler.unary_unary or handler.unary_stream or handler.stream_stream
        behavior = compose(method, kind, self._interceptors)
        output = descriptor_pool.Default().FindMethodByName(f"{self._service}.{name}").output_type
        response_class: Any = GetMessageClass(output)
        received: Any = method.request_class.FromString(request.SerializeToString())
        if method.streams_requests:
            received = RequestStream(received, _nothing_further())
        try:
            if method.streams_responses:
                async with aclosing(behavior(received, context)) as responses:
                    async for response in responses:
                        yield response_class.FromString(response) if isinstance(response, bytes) else response
            else:
                response = await behavior(received, context)
                encoded = response if isinstance(response, bytes) else handler.response_serializer(response)
                yield response_class.FromString(encoded)
        except grpc.aio.AbortError:
            raise context.error from None
