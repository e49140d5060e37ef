"""The command `healthcheck`, for orchestrators that run a command in the container instead of a request to it.

It asks the sidecar, which listens without TLS and asks the gRPC server over its own connection. The module imports
neither the server nor its libraries: a check every few seconds takes 0.3 s of CPU; the other commands import for 1.7 s.
"""

import json
import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from integration_server.command_errors import CommandFailed, run_program
from integration_server.env_file import EnvFileError, read_env_file
from integration_server.setting_types import Address
from integration_server.sidecar_settings import SidecarSettings

# Seconds. The sidecar waits at most one for the server. The orchestrator has a deadline of its own, above this one.
_DEADLINE = 3.0

_ADDRESS = "SIDECAR_ADDRESS"


def healthcheck(
    is_liveness: Annotated[
        bool, typer.Option("--live", help="Ask only whether the process runs: a database that is away is no failure.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Ask the running server whether it is ready. The exit code is 1 if it is not."""
    try:
        # Without need it is not read: the server has read it before, and need not find it as it is now.
        in_file = {} if _ADDRESS in os.environ else read_env_file(Path.cwd(), max_wait=_DEADLINE)
    except EnvFileError as error:
        raise CommandFailed(*error.problems) from None
    problem = find_problem({**in_file, **os.environ}, "/healthz" if is_liveness else "/readyz")
    if problem is not None:
        raise CommandFailed(problem)
    typer.echo(json.dumps({"healthy": True}) if as_json else "ok")


def find_problem(environment: Mapping[str, str | None], path: str, deadline: float = _DEADLINE) -> str | None:
    """Why the sidecar of these settings does not report health at the path within the deadline; None if it does."""
    text = (environment.get(_ADDRESS) or "").strip()
    try:
        address = SidecarSettings.model_validate({_ADDRESS: text} if text else {}).sidecar_address
    except ValidationError as error:
        return f"SIDECAR_ADDRESS: {error.errors(include_url=False)[0]['msg'].removeprefix('Value error, ')}"
    return _ask(address.reachable, path, deadline)


def _ask(address: Address, path: str, deadline: float) -> str | None:
    connection = HTTPConnection(address.host, address.port, timeout=deadline)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"no response from {address} (SIDECAR_ADDRESS): {error}"
    finally:
        connection.close()
    return None if status == HTTPStatus.OK else f"{address} (SIDECAR_ADDRESS) responds {status} to {path}: not ready"


def main() -> None:
    """Run the command with the process's arguments after its name."""
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command()(healthcheck)
    run_program(app, sys.argv[2:], "integration-server healthcheck")
