"""Leaves the event loop to other calls while many streams have events to send."""

import asyncio
from collections import deque


class Pacer:
    """Lets at most `per_iteration` waiters continue in one iteration of the event loop, in the order of arrival.

    The loop runs everything that is ready before it looks for new input. Without a pacer, an event for a thousand
    streams is a thousand sends in one iteration, and every other call waits for all of them.
    """

    def __init__(self, per_iteration: int) -> None:
        self._per_iteration = per_iteration
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait for a turn."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._release, loop)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        released = 0
        while self._waiting and released < self._per_iteration:
            turn = self._waiting.popleft()
            if not turn.done():  # else its stream has ended
                turn.set_result(None)
                released += 1
        if self._waiting:
            loop.call_soon(self._release, loop)
