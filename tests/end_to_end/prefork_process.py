"""A process that has everything imported, and forks a server whenever it is told to: in a tenth of the time of a start.

Run as `python -m tests.end_to_end.prefork_process`, by `nursery.py`. Takes orders as JSON, one a line, and answers each
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
            request = json.loads(line)
            print(
                json.dumps(_poll(request["poll"], children) if "poll" in request else _fork(request["fork"], children))
            )
            sys.stdout.flush()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(request: dict[str, Any], children: set[int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _set_up_process(request)
            uvloop.run(serve(VARIANTS[request["variant"]], request["environment"]))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.add(pid)
    return pid


def _set_up_process(request: dict[str, Any]) -> None:
    """A process with a directory, an environment and streams of its own."""
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, descriptor in enumerate(
        (os.open(os.devnull, os.O_RDONLY), os.open(request["out"], flags), os.open(request["err"], flags))
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
