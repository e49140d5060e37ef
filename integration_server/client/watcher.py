"""Runs the streams of credentials that a store asks for: in threads, or in tasks of asyncio.

A stream restarts when further accounts are used, once for all that come within a while: at first at once, and with
thousands of accounts every few seconds, because a request names all of them.
"""

import asyncio
import logging
import random
import threading
import weakref
from collections.abc import Awaitable, Callable

from integration_server.client.errors import Cancelled, IntegrationsError
from integration_server.client.rpcs import WATCH_CREDENTIALS
from integration_server.client.store import CredentialStore, StreamState
from integration_server.client.transport import AsyncCaller, AsyncResponseStream, Caller, ResponseStream
from integrations.v1.integration_service_pb2 import WatchCredentialsResponse

logger = logging.getLogger("integration_server.client")

_MAX_PAUSE = 30.0  # seconds between two streams of events
_JOIN_TIMEOUT = 2.0  # seconds; a cancelled stream ends at once, but not the function of a user's token


def restart_delay(stream: StreamState) -> float:
    """Return how many seconds a stream waits for further accounts before it restarts."""
    return 0.1 + len(stream.ids) / 1000


def pause_before_events(failures: int, error: IntegrationsError) -> float:
    """Return how many seconds a stream of events waits, after so many failures in a row, before it begins again."""
    delay = random.uniform(0.1, min(0.5 * 2.0 ** min(failures, 8), _MAX_PAUSE))  # noqa: S311 - jitter  # nosec B311
    return delay if error.retry_after is None else max(delay, error.retry_after.total_seconds())


def log_end(stream: str, error: IntegrationsError | None, delay: float) -> None:
    """Log that a stream has failed. `stream`: of what it is."""
    if error is not None:
        logger.info("the stream of %s has ended (%s), and begins again in %.1f s", stream, error.code.name, delay)


class _Run:
    """The running stream of a `StreamState`."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.call: ResponseStream[WatchCredentialsResponse] | None = None
        self.is_restarting = False
        self.timer: threading.Timer | None = None


class Watcher:
    """Runs streams, each in a daemon thread. Close it to end them."""

    def __init__(self, caller: Caller, store: CredentialStore[threading.Lock]) -> None:
        self._caller = caller
        self._store = store
        self._lock = threading.RLock()  # the garbage collector may call `close` in a thread that holds it
        self._runs: dict[int, _Run] = {}
        self._closed = threading.Event()

    def start(self, stream: StreamState) -> None:
        """Start a stream, or let the running one take the accounts that were added."""
        with self._lock:
            if self._closed.is_set():
                return
            run = self._runs.get(id(stream))
            if run is None:
                run = _Run()
                name = "integration_server.client credentials"
                run.thread = threading.Thread(target=self._run, args=(stream, run), name=name, daemon=True)
                run.thread.start()  # may fail, and the next account tries again; it waits for the lock
                self._runs[id(stream)] = run
            elif run.timer is None:
                timer = threading.Timer(restart_delay(stream), self._restart, (stream, run))
                timer.daemon = True
                timer.start()
                run.timer = timer

    def end_with(self, owner: object) -> None:
        """End all streams when `owner` is gone, also if nobody closes it, and before the interpreter ends."""
        weakref.finalize(owner, self._end)

    def close(self) -> None:
        """End all streams, and their threads. In a forked process there are none."""
        for thread in self._cancel():
            if thread is not threading.current_thread():
                thread.join(_JOIN_TIMEOUT)

    def _end(self) -> None:
        if threading.main_thread().is_alive():
            self._cancel()  # the garbage collector runs in any thread: what others wait for may be held here
        else:
            self.close()  # the interpreter ends, and a thread that is still in gRPC then can crash it

    def _cancel(self) -> list[threading.Thread]:
        if self._store.use_guard.is_inherited:
            return []
        with self._lock:
            self._closed.set()
            runs = list(self._runs.values())
        for run in runs:
            if run.timer is not None:
                run.timer.cancel()
            if run.call is not None:
                run.call.cancel()
        return [run.thread for run in runs if run.thread is not None]

    def _restart(self, stream: StreamState, run: _Run) -> None:
        with self._lock:
            run.timer = None
            call = run.call
            if call is None or not self._store.needs_restart(stream):
                return
            run.is_restarting = True
        call.cancel()

    def _run(self, stream: StreamState, run: _Run) -> None:
        while not self._closed.is_set():
            with self._lock:
                request = self._store.request(stream)
                run.is_restarting = False
                if request is None:
                    del self._runs[id(stream)]
                    return
            error: IntegrationsError | None = None
            try:
                call = self._caller.stream(WATCH_CREDENTIALS, request)
                with self._lock:
                    run.call = call
                if self._closed.is_set():
                    call.cancel()
                for response in call:
                    self._store.receive(stream, response)
                    if not response.results and self._store.needs_restart(stream):
                        run.is_restarting = True
                        break
            except IntegrationsError as caught:
                error = caught
            except Exception as caught:  # of the token's function, of a file, or of a closed client
                error = IntegrationsError(type(caught).__name__)
            finally:
                with self._lock:
                    run.call = None
            if run.is_restarting and isinstance(error, Cancelled | None):
                continue
            delay = self._store.ended(stream, error)
            if not self._closed.is_set():
                log_end("credentials", error, delay)
            self._closed.wait(delay)


class _AsyncRun:
    """The running stream of a `StreamState`."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.call: AsyncResponseStream[WatchCredentialsResponse] | None = None
        self.is_restarting = False
        self.timer: asyncio.TimerHandle | None = None


class AsyncWatcher:
    """Runs streams, each in a task. Close it to end them."""

    def __init__(
        self,
        caller: AsyncCaller,
        store: CredentialStore[asyncio.Lock],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._caller = caller
        self._store = store
        self._sleep = sleep
        self._runs: dict[int, _AsyncRun] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def start(self, stream: StreamState) -> None:
        """Start a stream, or let the running one take the accounts that were added."""
        if self._is_closed:
            return
        loop = self._loop = asyncio.get_running_loop()
        run = self._runs.get(id(stream))
        if run is None:
            run = self._runs[id(stream)] = _AsyncRun()
            run.task = loop.create_task(self._run(stream, run))
        elif run.timer is None:
            run.timer = loop.call_later(restart_delay(stream), self._restart, stream, run)

    def end_with(self, owner: object) -> None:
        """End all streams when `owner` is gone, also if nobody closes it. The end of the event loop ends them too."""
        weakref.finalize(owner, self._end_from_any_thread).atexit = False

    async def close(self) -> None:
        """End all streams."""
        await asyncio.gather(*self._cancel(), return_exceptions=True)

    def _end_from_any_thread(self) -> None:
        # The garbage collector runs in any thread.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> list[asyncio.Task[None]]:
        self._is_closed = True
        runs, self._runs = list(self._runs.values()), {}
        for run in runs:
            if run.timer is not None:
                run.timer.cancel()
        tasks = [run.task for run in runs if run.task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    def _restart(self, stream: StreamState, run: _AsyncRun) -> None:
        run.timer = None
        if run.call is not None and self._store.needs_restart(stream):
            run.is_restarting = True
            run.call.cancel()

    async def _run(self, stream: StreamState, run: _AsyncRun) -> None:
        while True:
            request = self._store.request(stream)
            run.is_restarting = False
            if request is None:
                self._runs.pop(id(stream), None)
                return
            error: IntegrationsError | None = None
            try:
                run.call = await self._caller.stream(WATCH_CREDENTIALS, request)
                async for response in run.call:
                    self._store.receive(stream, response)
                    if not response.results and self._store.needs_restart(stream):
                        run.is_restarting = True
                        break
            except IntegrationsError as caught:
                error = caught
            except Exception as caught:  # of the token's function, of a file, or of a closed client
                error = IntegrationsError(type(caught).__name__)
            finally:
                if run.call is not None:
                    run.call.cancel()
                run.call = None
            if run.is_restarting and isinstance(error, Cancelled | None):
                continue
            delay = self._store.ended(stream, error)
            log_end("credentials", error, delay)
            await self._sleep(delay)
