"""The entry point of `python -m integration_server`, and of the command `integration-server`.

The commands are the server's, whose dependencies are an extra: without it, this says how to install it.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module

from integration_server.standard_streams import prepare_standard_streams

# The processes of a server: their modules, and libraries that they do without. uvicorn needs click.
_PROCESSES: Mapping[str, tuple[str, Sequence[str]]] = {
    "serve": ("integration_server.cli.serving", ["click", "rich"]),
    "sidecar_process": ("integration_server.sidecar_process", ["rich"]),
    "metrics_process": ("integration_server.metrics_process", ["rich"]),
}


def _load_commands() -> Callable[[], None]:
    if sys.argv[1:2] == ["healthcheck"]:  # runs every few seconds, and needs none of the other commands
        from integration_server import healthcheck  # noqa: PLC0415 - and nothing else is imported

        return healthcheck.main
    if len(sys.argv) == 2 and sys.argv[1] in _PROCESSES:
        module, libraries = _PROCESSES[sys.argv[1]]
        with _hidden(libraries):
            process_main: Callable[[], None] = import_module(module).main
        return process_main
    # Read by gRPC's C core when it is imported. By default it prints failed handshakes, which the error says anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from integration_server.cli import program  # noqa: PLC0415 - the server's dependencies may be missing

    return program.main


@contextmanager
def _hidden(libraries: Iterable[str]) -> Iterator[None]:
    """Let imports of these libraries fail until the block ends, as if they were not installed.

    Other libraries, such as httpx and structlog, import them if they find them, for what nobody uses here: a fifteenth
    of the time of a start, and 6 MB. One that is imported already stays.
    """
    hidden = [name for name in libraries if name not in sys.modules]
    # docs.python.org/3/reference/import.html#the-module-cache: None means that a module is not found.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def main(load_commands: Callable[[], Callable[[], None]] = _load_commands) -> None:
    """Run the command in the process's arguments."""
    prepare_standard_streams()
    # Otherwise pydantic looks for plugins in the metadata of all packages: a hundredth of a start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # What is imported stays: collections find nothing in it, and take a fifth of the time.
    gc.disable()
    try:
        commands = load_commands()
        gc.freeze()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("integration_server"):
            raise  # a defect of this package
        sys.exit(
            f"integration-server: the commands need the server's dependencies ({error.name} is not installed): "
            "pip install 'integration-server[server]'"
        )
    finally:
        gc.enable()
    commands()


if __name__ == "__main__":
    main()
