"""The command `types` and its subcommands, for operators and for authors of declarations."""

import json
import os
import subprocess  # nosec B404
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer
import uvloop

import integration_server
from integration_server.cli.operations import types as list_types_of_server
from integration_server.cli.options import Json, JsonLines
from integration_server.cli.shared import fail, report_errors
from integration_server.cli.tables import print_result
from integration_server.domain.credentials import AuthMethod
from integration_server.logs import configure_logging
from integration_server.providers.built_in import register_built_in
from integration_server.providers.declaration_tables import INTEGRATION_TYPE
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import ProviderHttp
from integration_server.providers.new_declaration import (
    DiscoveryError,
    declaration_from_metadata,
    discover,
    example_declaration,
)
from integration_server.providers.request_preview import PreviewedRequest, preview_requests
from integration_server.providers.toml_providers import CATALOGUE, json_schema, provider_class, read_declaration
from integration_server.settings import Settings, read_environment
from integration_server.wiring.providers import registered_providers
from integration_server.wiring.system import utc_now

_MAX_METADATA = 1 << 18  # bytes; the longest that are known have some ten kilobytes
_SUITE = Path(*integration_server.__path__).parent / "tests" / "conformance" / "test_conformance.py"


def list_types(context: typer.Context, as_json: JsonLines = False) -> None:
    """List the integration types of this server, and the settings that each still needs."""
    if context.invoked_subcommand is None:
        list_types_of_server(as_json=as_json)
    elif as_json:
        raise typer.BadParameter(f"it belongs after {context.invoked_subcommand}", param_hint="--json")


def show_schema(
    as_json: Annotated[bool, typer.Option("--json", help="Changes nothing: it is JSON in any case.")] = False,
) -> None:
    """Print the JSON Schema of declarations, for editors."""
    print_result(json_schema(), as_json=True)


@report_errors
def check_declaration(
    file: Annotated[Path, typer.Argument(help="A TOML file that declares a provider.")],
    *,
    dev: Annotated[bool, typer.Option(help="Allow plain http to loopback, as the server does in dev mode.")] = False,
    as_json: Json = False,
) -> None:
    """Validate a declaration, and print all its problems."""
    declaration = read_declaration(file, dev_mode=dev)
    factory = ProviderFactory()
    register_built_in(factory)
    if not (CATALOGUE / file.name).is_file() or not file.samefile(str(CATALOGUE / file.name)):
        factory.register(declaration.integration_type, provider_class(declaration), origin=str(file))
    name = declaration.integration_type
    print_result({"file": str(file), "integration_type": name}, f"{file} declares {name}.", as_json=as_json)


@report_errors
def new_declaration(
    name: Annotated[str, typer.Argument(help="The name of the new type, such as acme_books.")],
    *,
    issuer: Annotated[str, typer.Option("--discover", help="Read the metadata of this issuer, an https URL.")] = "",
    auth: Annotated[
        AuthMethod, typer.Option(help="The authentication method, without --discover.")
    ] = AuthMethod.OAUTH2,
    output: Annotated[Path | None, typer.Option(help="The file to write; the default is NAME.toml.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
    dev: Annotated[bool, typer.Option(help="Allow plain http to loopback, as the server does in dev mode.")] = False,
    as_json: Json = False,
) -> None:
    """Write a declaration: from the metadata of an authorization server, or with examples to replace."""
    configure_logging("ERROR")  # what could not be read is in the message
    settings, file = _settings(dev), output or Path(f"{name}.toml")
    if not INTEGRATION_TYPE.fullmatch(name):
        fail(f"{name!r} cannot be the name of a type: it must match {INTEGRATION_TYPE.pattern}")
    if name in registered_providers(settings).integration_types:
        fail(f"{name} is a type of this server already.")
    if file.exists() and not force:
        fail(f"{file} is there already; --force replaces it.")
    if file.is_dir() or not file.parent.is_dir():
        fail(f"{file} cannot be written: {'it is' if file.is_dir() else f'{file.parent} is not'} a directory.")
    text = example_declaration(name, auth)
    if issuer:
        try:
            text = uvloop.run(_discovered(name, issuer, dev_mode=settings.dev_mode))
        except DiscoveryError as error:
            fail(str(error))
    _write(file, text, replace=force)
    print_result(
        {"file": str(file), "integration_type": name},
        f"Wrote {file}. Next: python -m integration_server types check {file}",
        as_json=as_json,
    )


async def _discovered(name: str, issuer: str, *, dev_mode: bool) -> str:
    async with ProviderHttp(utc_now, dev_mode=dev_mode, body_limit=_MAX_METADATA) as http:
        return declaration_from_metadata(name, await discover(http, issuer), dev_mode=dev_mode)


def _write(file: Path, text: str, *, replace: bool) -> None:
    """Write a file as a whole. Without `replace`, it must be new."""
    if not replace:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
        return
    with NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as temporary:
        temporary.write(text)
    Path(temporary.name).chmod(0o644)  # the server may run as another user
    Path(temporary.name).replace(file)


@report_errors
def show_requests(
    declaration: Annotated[str, typer.Argument(help="A type of this server, or a TOML file that declares one.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the requests as a JSON list.")] = False,
    dev: Annotated[bool, typer.Option(help="Allow plain http to loopback, as the server does in dev mode.")] = False,
) -> None:
    """Print each request that the server sends for a type, and its destination. Nothing is sent.

    The server's own code builds the requests, with {name} in place of credentials, config and settings.
    """
    configure_logging("WARNING")  # nothing is sent, though it is logged as if it were
    factory, integration_type = _factory_with(declaration, _settings(dev))
    requests = uvloop.run(preview_requests(factory, integration_type, utc_now))
    if as_json:
        listed = [{**asdict(request), "destination": request.destination} for request in requests]
        typer.echo(json.dumps(listed, indent=2))
        return
    typer.echo("\n\n".join(map(_describe, requests)))


def _describe(request: PreviewedRequest) -> str:
    hosts = f" ({' or '.join(request.allowed_hosts)})" if request.allowed_hosts else ""
    lines = [f"{request.purpose}: to {request.destination}{hosts}", f"  {request.method} {request.url}"]
    lines += [f"    ? {name} = {value}" for name, value in request.query]
    lines += [f"    {name}: {value}" for name, value in request.headers.items()]
    if request.body is not None:
        lines += [f"    {line}" for line in json.dumps(request.body, indent=2, ensure_ascii=False).splitlines()]
    return "\n".join(lines)


def _settings(dev: bool) -> Settings:
    """The settings that concern types, of the environment and `.env`."""
    environment = read_environment(Path.cwd()) | ({"DEV_MODE": "true"} if dev else {})
    needed = {name: value for name, value in environment.items() if name in {"PROVIDERS_DIR", "DEV_MODE"}}
    return Settings.from_environment(needed, needs_key=False)


def _factory_with(declaration: str, settings: Settings) -> tuple[ProviderFactory, str]:
    """The factory of this server's types with a type, or with the one that a file declares, and the type's name."""
    factory = registered_providers(settings)
    if declaration in factory.integration_types:
        return factory, declaration
    if not Path(declaration).exists():
        fail(f"{declaration} is neither a file nor a type of this server.")
    declared = read_declaration(Path(declaration), dev_mode=settings.dev_mode)
    factory.replace(declared.integration_type, provider_class(declared))
    return factory, declared.integration_type


@report_errors
def try_declaration(
    declaration: Annotated[str, typer.Argument(help="A TOML file that declares a provider, or a type of this server.")],
    *,
    dev: Annotated[bool, typer.Option(help="Allow plain http to loopback, as the server does in dev mode.")] = False,
    as_json: JsonLines = False,
) -> None:
    """Run the conformance suite against a server that behaves as the declaration says, and print a table.

    The exit code is 1 if a check fails. Whether the declaration is right, only the provider's documentation can say.
    """
    settings = _settings(dev)
    _factory_with(declaration, settings)
    if not _SUITE.is_file() or find_spec("pytest") is None:
        fail(
            "The conformance suite is not part of the installed package: clone the repository, run `make setup` there, "
            "and run this command with its .venv/bin/python."
        )
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:terminal", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--try", declaration, str(_SUITE)]
    command += ["--try-json"] if as_json else []
    needed = {"PROVIDERS_DIR": str(settings.providers_dir or ""), "DEV_MODE": str(settings.dev_mode)}
    run = subprocess.run(command, env=os.environ | needed, check=False)  # noqa: S603  # nosec B603  # our own suite
    raise typer.Exit(run.returncode)
