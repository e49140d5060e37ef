"""Runs the server's processes: starts them in order, restarts those that die, and stops them together.

`Supervisor` is the parent, `SupervisorChannel` a child's connection to it. The channel is a Unix socket, which is the
child's standard input. Each message is a line of JSON:

- to the child: `{"config": …, "predecessor": …}` once, when all earlier processes are ready, with what the process that
  it replaces had reported; later `{"command": "drain"}` and `{"command": "stop"}`. The end of the stream means that the
  supervisor is gone.
- to the supervisor: `{"ready": …}` once, with what the log reports of the process, such as its address. A process that
  sends anything else is killed: an attacker may have taken over the one that serves the internet.

The config carries what must not be on a command line or in an environment. The supervisor has one thread and no event
loop, so that it can fork. It writes the children's standard error line by line, so that lines stay whole.

Imports nothing of ours but `standard_streams`: a child imports it before it knows anything.
"""

import asyncio
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import groupby
from math import inf
from typing import Any, Literal

import structlog

from integration_server.standard_streams import BoundedOutput

MAX_REPORT_BYTES = 4096  # of a child; it has a few names and addresses

_READ_BYTES = 64 * 1024  # at a time

_CONTROL, _ERRORS = 0, 2  # the child's standard input and standard error
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LINE_BYTES = 1024 * 1024  # longer lines are written in pieces, so that a child cannot fill the memory
# Of a process in a minute, after the start, besides events: each line once, whatever its digits (times, addresses), and
# no more than a few tracebacks. gRPC's C core prints a line for each malformed call and each failed handshake.
_PRINTED_BYTES = 16 * 1024
_DIGITS = b"0123456789"
_PRINTED_INTERVAL = timedelta(minutes=1)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STABLE_AFTER = timedelta(minutes=1)  # a process that ran for this long counts as healthy

HANG_TIMEOUT = timedelta(seconds=30)
"""The time without a beat after which a process hangs: no work that is in order blocks its event loop for that long."""

_MISSED_CHECKS = 6  # in a row: the supervisor may have been suspended together with the process


Command = Literal["drain", "stop"]
Spawn = Callable[[int, int], int]
"""Starts a process with these descriptors as standard input and standard error; returns its id."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process: how it starts, its config, and the time that it gets to stop before it is killed.

    `reports` are the names of what it reports when it is ready. The processes of a `group` follow each other: its first
    one starts alone, so that what keeps all of them from starting is reported once, and the others start together. They
    also stop together. `beats` returns a number that rises as long as the process works: one whose number does not rise
    for `HANG_TIMEOUT` is killed, and replaced. `on_end` is called when the process has ended.
    """

    name: str
    spawn: Spawn
    stop_timeout: timedelta
    reports: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    group: str = ""
    beats: Callable[[], int] | None = None
    on_end: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class RestartBackoff:
    """The pause before a restart. It doubles with each failure in a row."""

    first: timedelta = timedelta(seconds=0.5)
    longest: timedelta = timedelta(seconds=30)

    def pause(self, failures: int) -> float:
        """The pause in seconds after this many failures in a row, at least one."""
        return float(min(self.first * 2 ** min(failures - 1, 16), self.longest).total_seconds())


# --- spawning --------------------------------------------------------------------------------------------------------


def fork_into(main: Callable[[], int]) -> Spawn:
    """A process that runs `main` on the modules that are already imported; `main` returns the exit code."""

    def spawn(control: int, errors: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.dup2(control, _CONTROL)
            os.dup2(errors, _ERRORS)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the supervisor's ends: with them open, no channel would end
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = main()
        except BaseException:  # the interpreter prints any exception that ends a program
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    return spawn


def execute(command: Sequence[str], environment: Mapping[str, str]) -> Spawn:
    """A process that runs `python` with this command and environment, and shares no memory with the supervisor."""

    def spawn(control: int, errors: int) -> int:
        descriptors = [(os.POSIX_SPAWN_DUP2, control, _CONTROL), (os.POSIX_SPAWN_DUP2, errors, _ERRORS)]
        return os.posix_spawn(
            sys.executable, [sys.executable, *command], environment, file_actions=descriptors
        )  # all other descriptors are closed: Python opens them so

    return spawn


# --- the child's side ------------------------------------------------------------------------------------------------


class SupervisorChannel:
    """A supervised process's connection to its supervisor. With the supervisor the process ends, as one process would.

    `receive_config` comes first, then `commands` with the event loop running.
    """

    def __init__(self) -> None:
        # On Linux also a process whose event loop is blocked is killed with its supervisor. Elsewhere, and if the
        # supervisor has just gone, the end of the stream ends it.
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._socket = socket.socket(fileno=os.dup(_CONTROL))
        # Programs that this process starts inherit its standard input, and must not get the channel.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, _CONTROL)
        os.close(nothing)
        self._received = b""
        self.predecessor: Mapping[str, str] = {}
        """What the process that this one replaces had reported; empty at the first start. Known with the config."""

    def fileno(self) -> int:
        """The descriptor of the channel."""
        return self._socket.fileno()

    def receive_config(self) -> Mapping[str, Any]:
        """Wait for the config. Exits the process if the supervisor has no use for it any more."""
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        message = json.loads(line)
        self.predecessor = message["predecessor"]
        config: Mapping[str, Any] = message["config"]
        return config

    def report_ready(self, **details: str) -> None:
        """Report that this process serves, with details for the log."""
        self._socket.sendall(json.dumps({"ready": details}).encode() + b"\n")

    @asynccontextmanager
    async def commands(self, drain: Callable[[], None] = lambda: None) -> AsyncIterator[asyncio.Event]:
        """Call `drain` when the supervisor begins to stop; yields an event that is set when this process has to stop.

        `drain` comes first, for all processes: they report that they stop, and serve until the event is set.
        """
        stop = asyncio.Event()
        actions: Mapping[Command, Callable[[], None]] = {"drain": drain, "stop": stop.set}

        def obey() -> None:
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                actions[json.loads(line)["command"]]()

        def read() -> None:
            self._receive()
            obey()

        loop = asyncio.get_running_loop()
        loop.add_reader(self, read)
        loop.call_soon(obey)  # commands that arrived together with the config
        try:
            yield stop
        finally:
            loop.remove_reader(self)

    def _receive(self) -> None:
        try:
            received = self._socket.recv(_READ_BYTES)
        except ConnectionResetError:
            received = b""
        if not received:
            os.kill(os.getpid(), signal.SIGKILL)  # the supervisor was killed; whatever was to be finished is not
        self._received += received


# --- the supervisor --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _PrintLimiter:
    """Bounds what a process prints: clients make libraries print lines as often as they like."""

    interval_end: float = 0.0
    remaining_bytes: int = 0
    suppressed: int = 0
    kinds: set[bytes] = field(default_factory=set)

    def admit(self, line: bytes) -> int | None:
        """None if the line is not written, else the number of lines that were not written before it."""
        if time.monotonic() >= self.interval_end:
            self.interval_end = time.monotonic() + _PRINTED_INTERVAL.total_seconds()
            self.remaining_bytes = _PRINTED_BYTES
            self.kinds.clear()
        kind = line.translate(None, _DIGITS)
        if kind in self.kinds or len(line) > self.remaining_bytes:
            self.suppressed += 1
            return None
        self.kinds.add(kind)
        self.remaining_bytes -= len(line)
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


@dataclass(slots=True)
class _Process:
    """A running process. `details` are those of its report, None until it is ready."""

    spec: ChildSpec
    pid: int
    control: socket.socket
    errors: int
    start_time: float
    is_configured: bool = False
    details: Mapping[str, str] | None = None
    received: bytes = b""
    unwritten: bytes = b""
    printed: _PrintLimiter = field(default_factory=_PrintLimiter)
    beats: int = 0
    missed_checks: int = 0

    def send(self, **message: object) -> None:
        """Send a message, unless the process has died, which the supervisor notices by itself."""
        with suppress(OSError):
            self.control.sendall(json.dumps(message).encode() + b"\n")


class Supervisor:
    """Runs processes until a signal stops them, or until one of them cannot start.

    SIGTERM lets the processes drain for `drain_time` before they stop. SIGINT, and a second signal, stop them at once.

    While all run, `check` is called a few times in each `hang_timeout`, by default `HANG_TIMEOUT`. None, for negative
    controls: processes that hang are not replaced.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        backoff: RestartBackoff | None = None,
        check: Callable[[], None] = lambda: None,
        hang_timeout: timedelta | None = HANG_TIMEOUT,
        drain_time: timedelta = timedelta(0),
    ) -> None:
        self._specs = children
        self._check = check
        self._hang_timeout = hang_timeout
        self._check_interval = (hang_timeout or HANG_TIMEOUT).total_seconds() / _MISSED_CHECKS
        self._next_check = inf  # until all processes serve
        self._backoff = backoff or RestartBackoff()
        self._processes: dict[str, _Process] = {}
        self._failures: Counter[str] = Counter()
        self._reported: dict[str, Mapping[str, str]] = {}  # by the last process of each name that was ready
        self._due: dict[str, float] = {}  # when the dead processes are started again
        self._selector = selectors.PollSelector()  # without a descriptor of its own, which a fork would share
        self._drain_time = drain_time
        self._stop_signals: list[int] = []  # that have arrived
        self._has_served = False
        self._output = BoundedOutput(_ERRORS)
        self._log = structlog.get_logger(__name__)

    def run(self) -> int:
        """Run the processes to the end, and return the exit code: 0 if all of them stopped as they should.

        Until all processes have been ready, the exit of one of them ends all, with its code. Later it is restarted.
        """
        with self._signals():
            self._due = {spec.name: 0.0 for spec in self._specs}
            while not self._stop_signals:
                self._start_due()
                self._wait(min([self._next_check, *self._due.values()]) - time.monotonic())
                self._check_when_due()
                for process, code in self._reap():
                    if not self._has_served:
                        self._drain()
                        self._stop()
                        return code if code > 0 else 1
                    self._schedule_restart(process, code)
            has_failed = self._drain()
            self._log.info("stopping")
            has_failed |= self._stop()
            self._log.info("stopped")
            return int(has_failed)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let signals wake `_wait`, and those of `_STOP_SIGNALS` end the loop."""

        def stop(number: int, _frame: object) -> None:
            self._stop_signals.append(number)

        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(4096))
        handlers = {**dict.fromkeys(_STOP_SIGNALS, stop), signal.SIGCHLD: lambda _number, _frame: None}
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        previous_wake = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous_wake)
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._selector.close()
            wake.close()
            woken.close()

    def _start_due(self) -> None:
        for name in [name for name, due in self._due.items() if due <= time.monotonic()]:
            del self._due[name]
            (spec,) = (spec for spec in self._specs if spec.name == name)
            try:
                self._processes[name] = self._start(spec)
            except OSError as error:  # a limit of processes, memory or open files
                if not self._has_served:
                    raise
                pause = self._postpone_restart(name)
                self._log.error("process_not_started", name=name, problem=error.strerror, restart_in_seconds=pause)
        self._configure()

    def _check_when_due(self) -> None:
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + self._check_interval
        self._check()
        for process in self._processes.values():
            if process.spec.beats is None or process.details is None or self._hang_timeout is None:
                continue
            beats = process.spec.beats()
            process.missed_checks = process.missed_checks + 1 if beats == process.beats else 0
            process.beats = beats
            if process.missed_checks >= _MISSED_CHECKS:
                self._log.error("process_hangs", name=process.spec.name, pid=process.pid)
                os.kill(process.pid, signal.SIGKILL)

    def _start(self, spec: ChildSpec) -> _Process:
        control, child_control = socket.socketpair()
        errors, child_errors = os.pipe()
        os.set_blocking(errors, False)
        pid = None
        # A signal to the whole group, such as Ctrl-C, must not reach the children: they stop in order. They inherit
        # the mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            pid = spec.spawn(child_control.fileno(), child_errors)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            child_control.close()
            os.close(child_errors)
            if pid is None:
                control.close()
                os.close(errors)
        process = _Process(spec, pid, control, errors, time.monotonic())
        self._selector.register(control, selectors.EVENT_READ, partial(self._read_reports, process))
        self._selector.register(errors, selectors.EVENT_READ, partial(self._relay_errors, process))
        return process

    def _configure(self) -> None:
        """Send the configs that are due: a first start waits until the processes before it are ready.

        Within a group, only until the first one is.
        """
        for group in self._groups():
            for spec in group:
                process = self._processes.get(spec.name)
                if process is not None and not process.is_configured:
                    process.is_configured = True
                    process.send(config=spec.config, predecessor=self._reported.get(spec.name, {}))
                if not self._has_served and spec is group[0] and (process is None or process.details is None):
                    return
            ready = (self._processes.get(spec.name) for spec in group)
            if not self._has_served and any(process is None or process.details is None for process in ready):
                return

    def _groups(self) -> Sequence[Sequence[ChildSpec]]:
        """The processes by group, in the order in which they start. One without a group is alone."""
        return [list(specs) for _, specs in groupby(self._specs, lambda spec: spec.group or spec.name)]

    def _wait(self, timeout: float | None) -> None:
        """Wait for a signal, for what the processes write, or for the timeout in seconds."""
        for key, _ in self._selector.select(None if timeout in (None, inf) else max(0.0, timeout)):
            key.data()

    def _read_reports(self, process: _Process) -> None:
        received = b""
        with suppress(ConnectionResetError):
            received = process.control.recv(MAX_REPORT_BYTES)
        if not received:
            self._unregister(process.control)  # it is ending
            return
        process.received += received
        is_first = process.details is None
        line, end, rest = process.received.partition(b"\n")
        if is_first and not end and len(line) < MAX_REPORT_BYTES:
            return  # the rest of it comes
        is_report = is_first and not rest and len(line) < MAX_REPORT_BYTES
        report = _parse_report(line, process.spec.reports) if is_report else None
        if report is None:
            self._log.error("invalid_report", name=process.spec.name, pid=process.pid)
            self._unregister(process.control)
            os.kill(process.pid, signal.SIGKILL)
        else:
            process.details = self._reported[process.spec.name] = report
            self._on_ready(process)

    def _on_ready(self, process: _Process) -> None:
        pids = {name: started.pid for name, started in self._processes.items()}
        if self._has_served:
            self._log.info("process_restarted", name=process.spec.name, pids=pids, **process.details or {})
            return
        self._configure()
        if all(started.details is not None for started in self._processes.values()):
            self._has_served = True
            details = {
                key: value for started in self._processes.values() for key, value in (started.details or {}).items()
            }
            self._log.info("serving", **details, pids=pids)
            self._next_check = time.monotonic() + self._check_interval

    def _relay_errors(self, process: _Process) -> bool:
        """Write what the process has written, in whole lines; returns whether there may be more."""
        try:
            chunk = os.read(process.errors, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._unregister(process.errors)  # it is ending
            return False
        *lines, process.unwritten = (process.unwritten + chunk).split(b"\n")
        if len(process.unwritten) > _LINE_BYTES:
            lines, process.unwritten = [*lines, process.unwritten], b""
        self._write(self._labelled(process, lines))
        return True

    def _labelled(self, process: _Process, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines that are events, which name their process. What libraries print, such as gRPC's C core, is logged.

        Until all processes serve, what they print are messages of the command that the operator has just typed.
        """
        for line in lines:
            if line.startswith(b"{") or sys.stderr.isatty() or not self._has_served:
                yield line
            elif (suppressed := process.printed.admit(line)) is not None:
                if suppressed:
                    self._log.warning("printed_lines_suppressed", name=process.spec.name, suppressed=suppressed)
                self._log.warning("printed_line", name=process.spec.name, text=line.decode("utf-8", errors="replace"))

    def _write(self, lines: Iterable[bytes]) -> None:
        """Write lines to standard error, if somebody still reads it."""
        lost = self._output.lost
        with suppress(OSError):
            self._output.write(b"".join(line + b"\n" for line in lines))
        if lost and lost == self._output.lost:
            self._output.lost = 0
            self._log.warning("log_lines_lost", bytes=lost)

    def _unregister(self, end: socket.socket | int) -> None:
        with suppress(KeyError):
            self._selector.unregister(end)

    def _reap(self) -> Sequence[tuple[_Process, int]]:
        """The processes that have ended, with their exit codes as `subprocess` defines them.

        A list, so that none is left: nothing would wake `_wait` for it again.
        """
        ended = []
        for name, process in list(self._processes.items()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                del self._processes[name]
                while self._relay_errors(process):
                    pass
                self._write(self._labelled(process, [process.unwritten] if process.unwritten else []))
                self._unregister(process.control)
                self._unregister(process.errors)
                process.control.close()
                os.close(process.errors)
                process.spec.on_end()
                ended.append((process, os.waitstatus_to_exitcode(status)))
        return ended

    def _schedule_restart(self, process: _Process, code: int) -> None:
        name = process.spec.name
        if time.monotonic() - process.start_time >= _STABLE_AFTER.total_seconds():
            self._failures[name] = 0
        pause = self._postpone_restart(name)
        self._log.error("process_died", name=name, pid=process.pid, exit_code=code, restart_in_seconds=pause)

    def _postpone_restart(self, name: str) -> float:
        """Start the process after the pause that is due after one more failure; returns the pause in seconds."""
        self._failures[name] += 1
        pause = self._backoff.pause(self._failures[name])
        self._due[name] = time.monotonic() + pause
        return pause

    def _drain(self) -> bool:
        """Let the processes report that they stop, and serve until load balancers have noticed.

        Returns whether one of them failed.
        """
        for process in self._processes.values():
            if process.is_configured:  # others wait for their config, and take nothing else
                process.send(command="drain")
        if not self._has_served or not self._drain_time or self._stop_signals[0] != signal.SIGTERM:
            return False
        self._log.info("draining", seconds=self._drain_time.total_seconds())
        has_failed = False
        deadline = time.monotonic() + self._drain_time.total_seconds()
        while self._processes and len(self._stop_signals) == 1 and time.monotonic() < deadline:
            self._wait(deadline - time.monotonic())
            has_failed |= any(code for _, code in self._reap())
        return has_failed

    def _stop(self) -> bool:
        """Stop the processes, the last group first; returns whether one of them failed or had to be killed."""
        return sum(self._stop_group(group) for group in reversed(self._groups())) > 0

    def _stop_group(self, group: Sequence[ChildSpec]) -> bool:
        """Stop the processes of a group together; returns whether one of them failed or had to be killed."""
        has_failed = False
        names = {spec.name for spec in group}
        for process in (self._processes[name] for name in names & self._processes.keys()):
            if process.is_configured:
                process.send(command="stop")
            else:
                os.kill(process.pid, signal.SIGKILL)  # it has not begun to serve
        deadline = time.monotonic() + max(spec.stop_timeout for spec in group).total_seconds()
        is_late = False
        while remaining := names & self._processes.keys():
            if not is_late and time.monotonic() >= deadline:
                is_late = True
                for process in (self._processes[name] for name in sorted(remaining)):
                    self._log.error("process_killed", name=process.spec.name, pid=process.pid)
                    os.kill(process.pid, signal.SIGKILL)
            self._wait(None if is_late else deadline - time.monotonic())
            has_failed |= any(code and ended.is_configured for ended, code in self._reap())
        return has_failed


def _parse_report(line: bytes, names: Sequence[str]) -> Mapping[str, str] | None:
    """The named values of a report; None if it has any other form."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    details = message.get("ready") if isinstance(message, dict) else None
    if not isinstance(details, dict) or set(details) != set(names):
        return None
    return details if all(isinstance(value, str) for value in details.values()) else None
