"""Streams of requests: their first request, the further ones, and whether their client has ended them on purpose."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Self, cast

import grpc
from google.protobuf.message import Message

from integration_server.domain.errors import InvalidField
from integration_server.rpc.methods import Behavior, Context, Method

CANCELLATION_DELAY = 1.0
"""Seconds, after which gRPC has cancelled a call whose client is gone; it takes milliseconds."""


class RequestStream:
    """A stream of requests, of which the first has been read. Iterating it yields all of them, the first one too.

    `body_size` is the number of bytes in the bulk fields of the requests that were taken (`RequestLimits`).
    """

    def __init__(
        self,
        first: Message,
        rest: AsyncIterator[Message],
        bulk_field: str = "",
        confirmation: "EndConfirmation | None" = None,
    ) -> None:
        self.first = first
        self.body_size = 0
        self._rest = rest
        self._bulk_field = bulk_field
        self._confirmation = confirmation
        self._has_begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        request = await anext(self._rest) if self._has_begun else self.first
        self._has_begun = True
        self.body_size += len(getattr(request, self._bulk_field, b""))
        return request

    async def settle(self) -> None:
        """Wait until a response or a status may be sent (`EndConfirmation`)."""
        if self._confirmation is not None:
            await self._confirmation.settle()


class EndConfirmation:
    """Distinguishes a client that has ended its requests on purpose from one that has disconnected.

    The requests of a client that is gone end as those of one that has sent everything, and the cancellation comes at
    any time later. A metadata frame for a client that is gone fails at once. After the first response there is none to
    send, and only the time helps: the loop processes the cancellation long before.

    gRPC never ends a call of which a response or a status is sent at the same time as the metadata. Therefore `settle`
    has to be awaited before either.
    """

    def __init__(self, context: Context, *, settles: bool = True) -> None:
        self._context = context
        self._settles = settles
        self._sending: asyncio.Future[None] | None = None

    async def confirm(self) -> None:
        """Return only if the client is there; otherwise gRPC cancels the call meanwhile."""
        self._sending = asyncio.ensure_future(self._context.send_initial_metadata(()))
        try:
            await asyncio.shield(self._sending)  # gRPC sends it in any case
        except grpc.aio.BaseError:
            await asyncio.sleep(CANCELLATION_DELAY)

    async def settle(self) -> None:
        """Wait until no metadata is being sent."""
        if self._sending is not None and self._settles:
            await asyncio.wait({self._sending})
            if not self._sending.cancelled():
                self._sending.exception()  # marks it as retrieved


@asynccontextmanager
async def with_further_requests(
    first: Message,
    method: Method,
    decode: Callable[[bytes], Awaitable[Message]],
    context: Context,
    confirmation: EndConfirmation | None,
) -> AsyncIterator[RequestStream]:
    """Make a `RequestStream` of the first request and of those that come, which `decode` decodes.

    If the method has a bulk field, further requests have nothing else. Raises `InvalidField` in the iteration.
    """
    bulk_field = method.request_limits.bulk_field

    async def rest() -> AsyncIterator[Message]:
        while (raw := await context.read()) is not grpc.aio.EOF:
            request = await decode(cast("bytes", raw))
            for field, _ in request.ListFields() if bulk_field else ():
                if field.name != bulk_field:
                    raise InvalidField(field.name, "is set in a request that is not the first of its stream")
            yield request
        if confirmation is not None:
            await confirmation.confirm()

    requests = RequestStream(first, rest(), bulk_field, confirmation)
    try:
        yield requests
    finally:
        await requests.settle()


def settle_before_responses(behavior: Behavior) -> Behavior:
    """Await `settle` before each response of a method that streams in both directions."""

    async def stream(requests: RequestStream, context: Context) -> AsyncGenerator[Message, None]:
        async with aclosing(behavior(requests, context)) as responses:
            async for response in responses:
                await requests.settle()
                yield response

    return stream
