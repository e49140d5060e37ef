"""Leaves the event loop to other calls while many streams have events to send."""

import asyncio
from collections import deque


class Pacer:
    """Allows at most `per_iteration` sends in one iteration of the event loop, in the order of arrival.

    The loop runs everything that is ready before it looks for new input. Without a pacer, an event for a thousand
    streams is a thousand sends in one iteration, and every other call waits for all of them.
    """

    def __init__(self, per_iteration: int) -> None:
        self._per_iteration = per_iteration
        self._waiting: deque[tuple[asyncio.Future[int], int]] = deque()

    async def turn(self, sends: int = 1) -> int:
        """Wait for a turn. Returns how many sends it allows: one at least, and at most `sends`."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._release, loop)
        turn: asyncio.Future[int] = loop.create_future()
        self._waiting.append((turn, sends))
        return await turn

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        left = self._per_iteration
        while self._waiting and left:
            turn, sends = self._waiting.popleft()
            if not turn.done():  # else its stream has ended
                allowed = min(sends, left)
                turn.set_result(allowed)
                left -= allowed
        if self._waiting:
            loop.call_soon(self._release, loop)
