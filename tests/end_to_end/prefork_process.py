"""A process that has imported the server and forks commands on request, in a tenth of the time of a process start.

Run as `python -m tests.end_to_end.prefork_process SOCKET` by `prefork.py`. It listens on a Unix socket. A connection
carries one request and one response, each a line of JSON:

- `{"fork": {"variant" | "arguments", "directory", "environment", "out", "err", "open_files"}}`: the process id
- `{"poll": pid}`: the exit code as `subprocess.Popen` defines it, null while the process runs
- `{"wait": pid}`: the exit code, once the process has ended

When its standard input is closed, it kills all processes that it forked, and ends.

It never starts an event loop or gRPC itself, so that a fork copies no thread.
"""

import json
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from typing import Any

import uvloop

from integration_server.cli.program import main as run_command
from integration_server.providers.built_in import register_built_in
from integration_server.providers.factory import ProviderFactory
from tests.end_to_end.variants import VARIANTS, serve


def main() -> None:
    """Serve requests until the standard input is closed."""
    children: set[int] = set()
    register_built_in(ProviderFactory())  # reads their files for all forks
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(sys.argv[1])
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        try:
            while all(key.fileobj is listener for key, _ in selector.select()):
                connection, _ = listener.accept()
                with connection, connection.makefile("rw") as stream:
                    stream.write(json.dumps(_respond(json.loads(stream.readline()), children)) + "\n")
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _respond(request: dict[str, Any], children: set[int]) -> int | None:
    match request:
        case {"poll": pid}:
            return _wait(pid, children, os.WNOHANG)
        case {"wait": pid}:
            return _wait(pid, children)
        case _:
            return _fork(request["fork"], children)


def _fork(request: dict[str, Any], children: set[int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _set_up_process(request)
            code = _run(request)
        except BaseException:  # the interpreter also prints any exception that ends a program
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    children.add(pid)
    return pid


def _run(request: dict[str, Any]) -> int:
    if "variant" in request:
        uvloop.run(serve(VARIANTS[request["variant"]], request["environment"]))
        return 0
    sys.argv = ["integration_server", *request["arguments"]]
    try:
        run_command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _set_up_process(request: dict[str, Any]) -> None:
    """Give this process its own directory, environment, streams, and limit of open files."""
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, descriptor in enumerate(
        (os.open(os.devnull, os.O_RDONLY), os.open(request["out"], flags), os.open(request["err"], flags))
    ):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)  # the sockets of `main`
    if request["open_files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["open_files"],) * 2)


def _wait(pid: int, children: set[int], options: int = 0) -> int | None:
    ended, status = os.waitpid(pid, options)
    if not ended:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
