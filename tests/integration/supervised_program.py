"""A supervisor of two small processes, as a program: `python -m tests.integration.supervised_program BEHAVIOUR`.

`first` and `second` start in this order. BEHAVIOUR selects what they do.
"""

import asyncio
import errno
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial

import structlog

from integration_server.logs import configure_logging
from integration_server.supervisor import ChildSpec, RestartBackoff, Spawn, Supervisor, SupervisorChannel, fork_into

LINES = 300
PRINTED_LINES = 10_000
VALID = b'{"ready": {"second": "address"}}\n'
LIES = [
    [b"not JSON\n"],
    [b"[" * 4000 + b"\n"],
    [b"x" * 5000],
    [b"[]\n"],
    [b'{"ready": null}\n'],
    [b'{"ready": {}}\n'],
    [b'{"ready": {"second": "address", "event": "forged"}}\n'],
    [b'{"ready": {"second": {"pids": 1}}}\n'],
    [VALID + VALID],
    [VALID, b"more"],
    [VALID + b"more"],
    [VALID + b"\n"],
    [VALID[:-2] + b" " * 4080, b" " * 80 + VALID[-2:]],
]
"""What a process that an attacker has taken over might send."""

BEATS = mmap.mmap(-1, 1)
"""What `stop_beating` changes as long as it works."""

Behaviour = Callable[[SupervisorChannel | None], int]


def main() -> int:
    configure_logging("INFO", process="supervisor")
    children = FIRST_AND_SECOND[sys.argv[1]]
    if sys.argv[2:] == ["unsupervised"]:  # the same processes, with the log of this one
        for write in children.values():
            if os.fork() == 0:
                write(None)
                os._exit(0)
        os.wait()
        os.wait()
        return 0
    specs = [
        ChildSpec(
            name,
            _spawn(fork_into(_main_of(name, behaviour))),
            _stop_timeout(behaviour),
            reports=[name],
            group="workers" if name.startswith("worker") else "",
            beats=partial(BEATS.__getitem__, 0) if behaviour is stop_beating else None,
            on_end=partial(print, f"{name} has ended", file=sys.stderr),
        )
        for name, behaviour in children.items()
    ]
    backoff = RestartBackoff(first=timedelta(milliseconds=1), longest=timedelta(milliseconds=4))
    timeout = None if sys.argv[2:] == ["unwatched"] else timedelta(seconds=1.2)
    drain_time = timedelta(seconds=float(os.environ.get("DRAIN_SECONDS", "0")))
    return Supervisor(specs, backoff=backoff, check=_report_check, hang_timeout=timeout, drain_time=drain_time).run()


def _report_check() -> None:
    print("the supervisor has checked", file=sys.stderr)


def _spawn(fork: Spawn) -> Spawn:
    """Start the process, but in the second attempt of "second cannot be forked"."""
    attempts = 0

    def spawn(control: int, errors: int) -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 2 and sys.argv[1] == "second cannot be forked":
            raise BlockingIOError(errno.EAGAIN, "too many processes")
        return fork(control, errors)

    return spawn


def _stop_timeout(behaviour: Behaviour) -> timedelta:
    # The others stop by themselves, which takes its time on a busy machine.
    return timedelta(seconds=0.1 if behaviour in {ignore_stop, never_start} else 60)


def _main_of(name: str, behaviour: Behaviour) -> Callable[[], int]:
    def run() -> int:
        channel = SupervisorChannel()
        configure_logging("INFO", process=name)
        os.environ["NAME"] = name
        if behaviour is start_late:
            print(f"{name} is loading", file=sys.stderr)
            time.sleep(1)
        channel.receive_config()
        print(f"{name} may start", file=sys.stderr)
        return behaviour(channel)

    return run


def channel_name() -> str:
    """The name of this process, which is also that of its only report."""
    return os.environ["NAME"]


def report(*messages: bytes) -> Behaviour:
    """Send the supervisor other messages than it expects."""

    def send(channel: SupervisorChannel | None) -> int:
        assert channel is not None
        for message in messages:
            os.write(channel.fileno(), message)
            time.sleep(0.05)
        time.sleep(60)
        return 0

    return send


def serve(channel: SupervisorChannel | None) -> int:
    """Serve until stopped."""

    async def run() -> None:
        assert channel is not None
        log = structlog.get_logger()
        async with channel.commands(lambda: log.info("draining")) as stop:
            channel.report_ready(**{channel_name(): "address"})
            await stop.wait()
            await asyncio.sleep(0.05)
            log.info("ending")

    asyncio.run(run())
    return 0


def write_lines(channel: SupervisorChannel | None) -> int:
    """Write each line in two parts, as a line longer than a pipe's atomic write is."""
    for _ in range(LINES):
        os.write(2, b"{beginning ")
        time.sleep(0.001)  # time for the other process
        os.write(2, b"end}\n")
    return 0 if channel is None else serve(channel)


def print_lines(channel: SupervisorChannel | None) -> int:
    """Print, as libraries do, more than is written, and then log an event."""

    async def run() -> None:
        assert channel is not None
        async with channel.commands() as stop:
            channel.report_ready(**{channel_name(): "address"})
            await asyncio.sleep(0.1)  # until the supervisor has read the report
            for number in range(PRINTED_LINES):
                print(f"the same but for {number}", file=sys.stderr)
            for length in range(1, 500):
                print("x" * length, file=sys.stderr)
            structlog.get_logger().info("printed")
            await stop.wait()

    asyncio.run(run())
    return 0


def fail_to_start(_channel: SupervisorChannel | None) -> int:
    """End before being ready."""
    print("a message for the operator", file=sys.stderr)
    return 7


def die(channel: SupervisorChannel | None) -> int:
    """End soon after being ready."""
    assert channel is not None
    channel.report_ready(**{channel_name(): "address"})
    time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def ignore_stop(channel: SupervisorChannel | None) -> int:
    """Never react, like a process with a blocked event loop."""
    assert channel is not None
    channel.report_ready(**{channel_name(): "address"})
    while True:
        time.sleep(60)


def stop_beating(channel: SupervisorChannel | None) -> int:
    """Work for a while, and then do not: nothing else shows it."""
    assert channel is not None
    channel.report_ready(**{channel_name(): "address"})
    for number in range(20):
        BEATS[0] = number
        time.sleep(0.1)
    print("no more beats", file=sys.stderr)
    time.sleep(60)
    return 0


def never_start(_channel: SupervisorChannel | None) -> int:
    """Get stuck before being ready."""
    time.sleep(3600)
    return 0


def start_slowly(channel: SupervisorChannel | None) -> int:
    """Serve, some time after the others could have begun."""
    time.sleep(0.3)
    print(f"{channel_name()} is ready", file=sys.stderr)
    return serve(channel)


def start_late(channel: SupervisorChannel | None) -> int:
    """Serve, after the config has waited for a second."""
    return serve(channel)


FIRST_AND_SECOND: Mapping[str, Mapping[str, Behaviour]] = {
    "serve": {"first": serve, "second": serve},
    "first starts late": {"first": start_late, "second": serve},
    "write": {"first": write_lines, "second": write_lines},
    "second prints": {"first": serve, "second": print_lines},
    "first fails": {"first": fail_to_start, "second": serve},
    "first of three fails": {"first": fail_to_start, "second": serve, "third": serve},
    "second fails": {"first": serve, "second": fail_to_start},
    "second dies": {"first": serve, "second": die},
    **{f"second lies {number}": {"first": serve, "second": report(*lie)} for number, lie in enumerate(LIES)},
    "second cannot be forked": {"first": serve, "second": die},
    "second hangs": {"first": serve, "second": ignore_stop},
    "workers hang": {f"worker-{number}": ignore_stop for number in range(1, 9)},
    "second never starts": {"first": serve, "second": never_start},
    "second stops beating": {"first": serve, "second": stop_beating},
    "workers": {
        "first": serve,
        "worker-1": start_slowly,
        "worker-2": start_slowly,
        "worker-3": start_slowly,
        "last": serve,
    },
    "workers fail": {"worker-1": fail_to_start, "worker-2": fail_to_start, "worker-3": fail_to_start},
}


if __name__ == "__main__":
    sys.exit(main())
