"""The entry point of `python -m integration_server`, and of the command `integration-server`.

The commands are the server's, whose dependencies are an extra: without it, this says how to install it.
"""

import gc
import sys
from collections.abc import Callable

_OF_PROGRAMS = ("click", "rich")


def _load_commands() -> Callable[[], None]:
    if sys.argv[1:2] == ["healthcheck"]:  # runs every few seconds, and needs none of the other commands
        from integration_server import healthcheck  # noqa: PLC0415

        return healthcheck.main
    if sys.argv[1:] == ["serve"]:
        # Libraries import these, if they find them, for programs of their own: a fifteenth of the start, and 6 MB.
        for name in _OF_PROGRAMS:
            sys.modules[name] = None  # type: ignore[assignment]  # docs.python.org/3/reference/import.html: not found
        try:
            from integration_server.cli import serving  # noqa: PLC0415
        finally:
            for name in _OF_PROGRAMS:
                del sys.modules[name]
        return serving.main
    from integration_server.cli import program  # noqa: PLC0415 - the server's dependencies may be missing

    return program.main


def main(load_commands: Callable[[], Callable[[], None]] = _load_commands) -> None:
    """Run the command in the process's arguments."""
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
