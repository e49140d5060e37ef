"""What all commands share: the settings, what must be there before a command begins, and how each ends."""

import asyncio
import os
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
import uvloop

from integration_server.domain.errors import StoreUnavailable
from integration_server.hot_reload import InvalidFile
from integration_server.lifecycle import AddressTaken, raise_fd_limit
from integration_server.logs import configure_logging
from integration_server.providers.factory import ProvidersError
from integration_server.settings import Settings, SettingsError, read_environment
from integration_server.storage.data_keys import describe_data_keys
from integration_server.storage.engine import DEFAULT_DATABASE_URL, SqliteFile, open_database, parse_database_url
from integration_server.storage.key_encryption import KEY_BYTES, KeyringError
from integration_server.storage.schema import SchemaError, check_schema
from integration_server.storage.schema import migrate as migrate_schema

T = TypeVar("T")


def load_settings(
    defaults: Mapping[str, str] | None = None, *, needs_key: bool = True
) -> tuple[Settings, dict[str, str]]:
    """The settings and the environment that they are from, with logging set up; or the end, with all problems."""
    environment = {**(defaults or {}), **read_environment(Path.cwd())}
    try:
        settings = Settings.from_environment(environment, needs_key=needs_key)
    except SettingsError as error:
        fail("These settings are wrong:", *error.problems, *_key_hint(error.problems, environment))
    configure_logging(settings.log_level)
    return settings, environment


def _key_hint(problems: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
    """Which key the database wants, where that is the question and the database is there to tell."""
    if not any(problem.startswith("ENCRYPTION_KEY") for problem in problems):
        return ()
    try:
        wanted = asyncio.run(_wrapping_key_ids(environment.get("DATABASE_URL") or DEFAULT_DATABASE_URL))
    except (SchemaError, StoreUnavailable, ValueError, OSError):
        return ()
    return [f"The data keys of this database are wrapped by key {', '.join(wanted)}."] if wanted else ()


async def _wrapping_key_ids(database_url: str) -> Sequence[str]:
    location = parse_database_url(database_url)
    if isinstance(location, SqliteFile) and not location.path.exists():
        return ()  # to look would be to make it
    async with open_database(database_url) as database:
        await check_schema(database)
        return sorted({data_key.wrapping_key_id for data_key in await describe_data_keys(database)})


async def prepare_database(settings: Settings) -> bytes | None:
    """The local key, if there is to be one, once the schema is up to date.

    In dev mode both are made; otherwise what is missing is told.
    """
    if settings.dev_mode:
        await migrate_schema(settings.database_url)
    async with open_database(settings.database_url) as database:
        await check_schema(database)
    if settings.encryption_key is None and settings.dev_mode and settings.kms_key_id is None:
        return _dev_key(Path("data/encryption.key"))
    return settings.encryption_key


def _dev_key(path: Path) -> bytes:
    """The key of this working copy, made when there is none: whole or not at all, however many begin at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(new, path)
        new.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        fail(
            f"{path} is no key: it must be {KEY_BYTES} bytes, as they are and not in base64; it is {len(key)} bytes.",
            "Put back the one that was here: what it sealed opens with no other. Where none is, one is made.",
        )
    return key


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop; what an operator can mend is told in a line, not in a traceback."""
    raise_fd_limit()
    try:
        return uvloop.run(command)
    except ProvidersError as error:
        fail("These providers are wrong:", *error.problems)
    except SettingsError as error:
        fail("These settings are wrong:", *error.problems)
    except InvalidFile as error:
        fail("What callers are known by is wrong:", *error.problems)
    except (AddressTaken, KeyringError, SchemaError, StoreUnavailable, OSError) as error:
        fail(str(error))


def fail(*lines: str) -> NoReturn:
    typer.echo("\n  ".join(lines), err=True)
    raise typer.Exit(code=1)
