"""A process that has everything imported, and forks a server whenever it is told to: in a tenth of the time of a start.

Run as `python -m tests.end_to_end.nursery_process`, by `nursery.py`. Takes orders as JSON, one a line, and answers each
with a line: `{"fork": {"variant", "directory", "environment", "out", "err"}}` with the process id, `{"poll": pid}` with
the exit code as `Popen` has it, or null. When its input ends, or it is told to, it takes all that it forked along.

It never starts an event loop or gRPC itself, so that there is nothing that a fork could break.
"""

import json
import os
import signal
import sys
from typing import Any

import uvloop

from tests.end_to_end.variants import VARIANTS, serve


def main() -> None:
    """Serve until the input ends."""
    children: set[int] = set()
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(_poll(order["poll"], children) if "poll" in order else _fork(order["fork"], children)))
            sys.stdout.flush()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(order: dict[str, Any], children: set[int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _become(order)
            uvloop.run(serve(VARIANTS[order["variant"]], order["environment"]))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.add(pid)
    return pid


def _become(order: dict[str, Any]) -> None:
    """A process with a directory, an environment and streams of its own."""
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, descriptor in enumerate(
        (os.open(os.devnull, os.O_RDONLY), os.open(order["out"], flags), os.open(order["err"], flags))
    ):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _poll(pid: int, children: set[int]) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
