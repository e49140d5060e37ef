"""The commands. `--help` tells all of them."""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import structlog
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from integration_server.bootstrap import (
    build_providers,
    open_key_encryptions,
    running_server,
    running_sidecar,
    utc_now,
)
from integration_server.dev import run_dev
from integration_server.domain.audit import OPERATOR, Action, AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.lifecycle import AddressTaken, raise_open_files, settle_memory, stop_signals
from integration_server.logs import configure_logging
from integration_server.providers.factory import ProvidersError
from integration_server.providers.http import ProviderHttp
from integration_server.reloading import Unusable
from integration_server.settings import Address, Settings, SettingsError, parse_address, read_environment
from integration_server.storage.audit import AuditVerification, SqlAuditLog, list_audit_entries
from integration_server.storage.data_keys import (
    DataKey,
    count_sealed_values,
    describe_data_keys,
    remove_data_key,
    rewrap,
)
from integration_server.storage.engine import (
    DEFAULT_DATABASE_URL,
    Database,
    SqliteFile,
    open_database,
    parse_database_url,
)
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.key_encryption import KeyringError, LocalKey
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.rotation import Rotated, Rotation, Step
from integration_server.storage.schema import migrate as migrate_schema
from integration_server.storage.schema import schema_is_current

T = TypeVar("T")

app = typer.Typer(
    help="Connects users' third-party accounts, keeps their credentials encrypted and fresh, and hands out ones that "
    "work. Settings are environment variables, also read from .env; .env.example lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="The keys that credentials are sealed with.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
audit_app = typer.Typer(help="The record of who did what to which integration.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")


def main() -> None:
    """Run the command that the arguments name."""
    app(prog_name="python -m integration_server")


# --- serving -----------------------------------------------------------------------------------------------------


@app.command()
def serve() -> None:
    """Serve gRPC, with the sidecar beside it, until SIGTERM or Ctrl-C."""
    settings, environment = _settings()
    _run(_serve(settings, environment))


async def _serve(settings: Settings, environment: Mapping[str, str]) -> None:
    log = structlog.get_logger(__name__)
    key = await _prepared(settings)
    async with stop_signals() as stop, running_server(settings, environment, key=key) as running:
        settle_memory()
        log.info("serving", grpc=running.grpc_address, sidecar=running.sidecar_url)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


@app.command()
def sidecar() -> None:
    """Serve the HTTP sidecar alone: it receives browsers on SIDECAR_ADDRESS and calls the server on GRPC_ADDRESS."""
    settings, _ = _settings(needs_key=False)
    _run(_sidecar(settings))


async def _sidecar(settings: Settings) -> None:
    log = structlog.get_logger(__name__)
    async with (
        stop_signals() as stop,
        running_sidecar(settings, settings.grpc_address) as url,
    ):
        log.info("serving", sidecar=url, grpc=str(settings.grpc_address))
        await stop.wait()


@app.command()
def dev(
    sandbox_address: Annotated[
        str, typer.Option(envvar="SANDBOX_ADDRESS", help="Where the sandbox provider listens.")
    ] = "127.0.0.1:9090",
) -> None:
    """Serve in dev mode beside a sandbox provider, with one sample account connected over the real flow."""
    try:
        address = parse_address(sandbox_address)
    except ValueError as error:
        _fail(f"SANDBOX_ADDRESS: {error}")
    settings, environment = _settings({"DEV_MODE": "true", "LOG_LEVEL": "WARNING"})
    _run(_dev(settings, environment, address))


async def _dev(settings: Settings, environment: Mapping[str, str], sandbox_address: Address) -> None:
    key = await _prepared(settings)
    async with stop_signals() as stop:
        await run_dev(settings, environment, key, sandbox_address, stop, Console())


# --- database and keys -------------------------------------------------------------------------------------------


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date. Safe to run beside other replicas that do the same."""
    settings, _ = _settings(needs_key=False)
    _run(migrate_schema(settings.database_url))
    typer.echo("The schema is up to date.")


@keys_app.command("show")
def show_keys() -> None:
    """List the data keys by id: what each is for, how many values it seals, which key it is wrapped by."""
    settings, _ = _settings()
    _run(_show_keys(settings))


@keys_app.command("add")
def add_key() -> None:
    """Announce a data key, that seals as soon as all servers know it; the former ones still open what they sealed."""
    settings, _ = _settings()
    _run(_add_key(settings))


@keys_app.command("rotate")
def rotate_keys(
    new_key: Annotated[bool, typer.Option(help="Without: re-seal with the newest data key what others seal.")] = True,
) -> None:
    """Replace the data key: announce one, then re-seal everything with it while servers go on.

    Killed or failed, it goes on where it was when it is run again. The former key stays until `keys remove`.
    """
    settings, _ = _settings()
    _run(_rotate_keys(settings, new_key=new_key))


@keys_app.command("rewrap")
def rewrap_keys() -> None:
    """Wrap the data keys with the current ENCRYPTION_KEY or KMS_KEY_ID, so that retired ones can go."""
    settings, _ = _settings()
    _run(_rewrap_keys(settings))


@keys_app.command("remove")
def remove_key(
    data_key: Annotated[str, typer.Argument(help="Its id, as `keys show` has it.")],
    force: Annotated[
        bool,
        typer.Option("--force", help="Also within the day: spilled refreshes and tokens may need it."),
    ] = False,
) -> None:
    """Remove a data key that seals nothing any more, a day after another took its place."""
    settings, _ = _settings()
    _run(_remove_key(settings, data_key, force=force))


async def _show_keys(settings: Settings) -> None:
    key = await _prepared(settings)
    table = Table("data key", "use", "values", "wrapped by", "created")
    async with open_database(settings.database_url) as database:
        for data_key in await describe_data_keys(database):
            values = await count_sealed_values(database, data_key.key_id)
            table.add_row(
                data_key.key_id,
                _use_of(data_key),
                f"{values:,}",
                Text(data_key.wrapping_key_id, overflow="fold"),
                f"{data_key.create_time:%F %T} UTC",
            )
    if table.row_count:
        Console().print(table)
    else:
        typer.echo("There is no data key yet: the first start of the server makes one.")
    _tell_wrapping_keys(settings, key)


def _use_of(key: DataKey) -> str:
    if key.is_announced:
        return f"seals from {key.active_time:%F %T} UTC on"
    if key.is_active:
        return "seals new values" if key.is_settled else "seals new values, and is to re-seal the others"
    return f"opens; may be removed from {key.remove_time:%F %T} UTC on"


def _tell_wrapping_keys(settings: Settings, key: bytes | None) -> None:
    if settings.kms_key_id is not None:
        typer.echo(f"KMS_KEY_ID is {settings.kms_key_id}.")
    for retired_id in settings.kms_key_ids_retired:
        typer.echo(f"KMS_KEY_IDS_RETIRED has {retired_id}.")
    if key is not None:
        typer.echo(f"ENCRYPTION_KEY is key {LocalKey(key).key_id}.")
    for retired in settings.encryption_keys_retired:
        typer.echo(f"ENCRYPTION_KEYS_RETIRED has key {LocalKey(retired).key_id}.")


async def _add_key(settings: Settings) -> None:
    keys = await open_key_encryptions(settings, await _prepared(settings))
    async with open_database(settings.database_url) as database:
        keyring = await open_keyring(database, keys)
        key_id = await keyring.add_data_key(settings.data_key_activation)
        await _audited(database, keyring, f"add {key_id}")
    typer.echo(f"Data key {key_id} seals from {settings.data_key_activation_seconds:g} seconds from now on.")


async def _rotate_keys(settings: Settings, *, new_key: bool) -> None:
    keys = await open_key_encryptions(settings, await _prepared(settings))
    async with open_database(settings.database_url) as database:
        keyring = await open_keyring(database, keys)
        rotation = Rotation(database, keyring, activation=settings.data_key_activation)
        with _progress() as progress:
            rotated = await rotation.rotate(_shown_on(progress), new_key=new_key)
        await _audited(database, keyring, f"rotate to {keyring.active_key_id}")
        _tell(rotated, await _removable(database))
    if rotated.unreadable:
        _fail(
            f"Values that do not open, and stay as they are: {len(rotated.unreadable):,}",
            *rotated.unreadable[:10],
            "Their users have to connect again; `keys remove` refuses until the rows are gone.",
        )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=False
    )


def _shown_on(progress: Progress) -> Callable[[Step], Awaitable[None]]:
    task = progress.add_task("Announcing", total=None)

    async def after_step(step: Step) -> None:
        if step.left:
            progress.update(task, description=f"Until all servers know: {step.left.total_seconds():.0f} s")
            return
        progress.update(task, description="Re-sealing", completed=step.done, total=step.total)
        await asyncio.sleep(step.took)  # half of the time is for others: on SQLite there is one writer

    return after_step


def _tell(rotated: Rotated, removable: Sequence[DataKey]) -> None:
    what = "all the others" if rotated.unreadable else "everything"
    typer.echo(f"Data key {rotated.key_id} seals {what} now: {rotated.resealed:,} values were re-sealed.")
    for key in removable:
        typer.echo(f"From {key.remove_time:%F %T} UTC on, this may go: keys remove {key.key_id}")


async def _removable(database: Database) -> Sequence[DataKey]:
    return [key for key in await describe_data_keys(database) if key.remove_time is not None]


async def _rewrap_keys(settings: Settings) -> None:
    keys = await open_key_encryptions(settings, await _prepared(settings))
    async with open_database(settings.database_url) as database:
        keyring = await open_keyring(database, keys)
        count = await rewrap(database, keys)
        await _audited(database, keyring, f"rewrap with {keys.current_id}")
    typer.echo(f"{count} data keys were wrapped again. Key {keys.current_id} wraps all of them now.")


async def _remove_key(settings: Settings, key_id: str, *, force: bool) -> None:
    keys = await open_key_encryptions(settings, await _prepared(settings))
    async with open_database(settings.database_url) as database:
        keyring = await open_keyring(database, keys)
        await remove_data_key(database, key_id, force=force)
        await _audited(database, keyring, f"remove {key_id}")
    typer.echo(f"Data key {key_id} is removed.")


@app.command()
def types() -> None:
    """List the integration types that this server knows, and what they still need."""
    settings, environment = _settings(needs_key=False)
    try:
        providers = build_providers(settings, environment, ProviderHttp(utc_now))
    except ProvidersError as error:
        _fail("These providers are wrong:", *error.problems)
    table = Table("type", "name", "auth method", Column("missing settings", overflow="fold"))
    for provider in providers.all():
        missing = "\n".join(provider.missing_settings)
        table.add_row(provider.integration_type, provider.display_name, provider.auth_method, missing)
    Console().print(table)


@app.command()
def expiring(
    days: Annotated[float, typer.Option(min=0, help="How far to look ahead.")] = 30,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most, the soonest first.")] = 1000,
) -> None:
    """List the integrations that will die within some days, unless their users connect them again.

    They are those whose refresh token has a known end, or whose access token cannot be renewed. Those that are switched
    off, or dead already, are left out.
    """
    settings, _ = _settings(needs_key=False)
    _run(_expiring(settings, timedelta(days=days), limit))


async def _expiring(settings: Settings, within: timedelta, limit: int) -> None:
    now = utc_now()
    table = Table("ends", "in days", "id", "user", "type", "account", "what ends")
    async with open_database(settings.database_url) as database:
        for ending in await SqlIntegrations(database).list_ending(now + within, limit):
            end_time = ending.end_time or now
            table.add_row(
                f"{end_time:%F %R} UTC",
                f"{(end_time - now) / timedelta(days=1):.1f}",
                str(ending.integration_id),
                ending.user_id,
                ending.integration_type,
                ending.account_label or ending.account_id or "",
                "refresh token" if ending.is_renewable else "access token",
            )
    if table.row_count:
        Console().print(table)
    else:
        typer.echo("No integration ends within that time, as far as the providers have told.")
    if table.row_count == limit:
        typer.echo(f"These are the first {limit}; there may be more: --limit.")


# --- the audit log -----------------------------------------------------------------------------------------------


@audit_app.command("verify")
def verify_audit() -> None:
    """Check that no entry of the audit log was altered or removed; the exit code is 1 if one was."""
    settings, _ = _settings()
    _run(_verify_audit(settings))


async def _verify_audit(settings: Settings) -> None:
    keys = await open_key_encryptions(settings, await _prepared(settings))
    async with open_database(settings.database_url) as database:
        log = AuditVerification(database, await open_keyring(database, keys))
        problems = [problem async for problem in log.problems()]
    if problems:
        _fail(f"The audit log is not as it was written ({log.entries:,} entries were read):", *problems)
    typer.echo(f"The audit log is as it was written: {log.chains:,} chains, {log.entries:,} entries.")


@audit_app.command("list")
def list_audit(
    user: Annotated[str, typer.Option(help="Only of this user.")] = "",
    integration: Annotated[int, typer.Option(min=0, help="Only of this integration.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
) -> None:
    """List what was done, the newest first."""
    settings, _ = _settings(needs_key=False)
    _run(_list_audit(settings, user, integration, limit))


async def _list_audit(settings: Settings, user_id: str, integration_id: int, limit: int) -> None:
    table = Table("time", "caller", "action", "user", "integration", "outcome", "purpose", "details")
    async with open_database(settings.database_url) as database:
        for entry in await list_audit_entries(database, user_id, integration_id, limit):
            which = " ".join(filter(None, (str(entry.integration_id or ""), entry.integration_type)))
            told = (entry.caller, entry.action, entry.user_id, which, entry.outcome, entry.purpose, entry.details)
            table.add_row(f"{entry.time:%F %T} UTC", *(Text(text, overflow="fold") for text in told))
    Console().print(table)


async def _audited(database: Database, keyring: Keyring, what: str) -> None:
    """Tell the audit log of a change of keys."""
    entry = AuditEntry(utc_now(), OPERATOR, Action.CHANGE_KEYS, purpose=what)
    await SqlAuditLog(database, keyring).append([entry])


# --- what commands share -----------------------------------------------------------------------------------------


def _settings(defaults: Mapping[str, str] | None = None, *, needs_key: bool = True) -> tuple[Settings, dict[str, str]]:
    """The settings and the environment that they are from, with logging set up; or the end, with all problems."""
    environment = {**(defaults or {}), **read_environment(Path.cwd())}
    try:
        settings = Settings.from_environment(environment, needs_key=needs_key)
    except SettingsError as error:
        _fail("These settings are wrong:", *error.problems, *_key_hint(error.problems, environment))
    configure_logging(settings.log_level)
    return settings, environment


def _key_hint(problems: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
    """Which key the database wants, where that is the question and the database is there to tell."""
    if not any(problem.startswith("ENCRYPTION_KEY") for problem in problems):
        return ()
    try:
        wanted = asyncio.run(_wrapping_key_ids(environment.get("DATABASE_URL") or DEFAULT_DATABASE_URL))
    except (StoreUnavailable, ValueError, OSError):
        return ()
    return [f"The data keys of this database are wrapped by key {', '.join(wanted)}."] if wanted else ()


async def _wrapping_key_ids(database_url: str) -> Sequence[str]:
    where = parse_database_url(database_url)
    if isinstance(where, SqliteFile) and not where.path.exists():
        return ()  # to look would be to make it
    async with open_database(database_url) as database:
        if not await schema_is_current(database):
            return ()
        return sorted({data_key.wrapping_key_id for data_key in await describe_data_keys(database)})


async def _prepared(settings: Settings) -> bytes | None:
    """The local key, if there is to be one, once the schema is up to date.

    In dev mode both are made; otherwise what is missing is told.
    """
    if settings.dev_mode:
        await migrate_schema(settings.database_url)
    async with open_database(settings.database_url) as database:
        if not await schema_is_current(database):
            _fail("The database's schema is not up to date: run `python -m integration_server migrate` first.")
    if settings.encryption_key is None and settings.dev_mode and settings.kms_key_id is None:
        return _dev_key(Path("data/encryption.key"))
    return settings.encryption_key


def _dev_key(path: Path) -> bytes:
    """The key of this working copy, made when there is none: whole or not at all, however many begin at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(new, path)
        new.unlink()
    return path.read_bytes()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop; what an operator can mend is told in a line, not in a traceback."""
    raise_open_files()
    try:
        return uvloop.run(work)
    except ProvidersError as error:
        _fail("These providers are wrong:", *error.problems)
    except Unusable as error:
        _fail("What callers are known by is wrong:", *error.problems)
    except (AddressTaken, KeyringError, StoreUnavailable, OSError) as error:
        _fail(str(error))


def _fail(*lines: str) -> NoReturn:
    typer.echo("\n  ".join(lines), err=True)
    raise typer.Exit(code=1)
