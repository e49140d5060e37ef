"""The parts that the commands share: settings, the prepared database, and the conversion of errors into messages."""

import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import uvloop

from integration_server.command_errors import CommandFailed, describe_os_error
from integration_server.domain.errors import StoreUnavailable
from integration_server.entropy import is_weak_key
from integration_server.hot_reload import InvalidFile
from integration_server.lifecycle import AddressTaken, protect_memory, raise_fd_limit
from integration_server.logs import configure_logging
from integration_server.providers.factory import ProvidersError
from integration_server.settings import Settings, SettingsError, name_files, read_environment
from integration_server.storage.data_keys import describe_data_keys
from integration_server.storage.engine import open_database
from integration_server.storage.key_encryption import KEY_BYTES, KeyringError
from integration_server.storage.outage_causes import explain_outage
from integration_server.storage.pools import DEFAULT_DATABASE_URL, SqliteLocation, parse_database_url
from integration_server.storage.schema import SchemaError, check_schema
from integration_server.storage.schema import migrate as migrate_schema
from integration_server.wiring.audit_heads import open_head_recorder
from integration_server.wiring.setting_names import misspelled_names
from integration_server.wiring.storage import Storage, open_storage
from integration_server.wiring.system import utc_now

P = ParamSpec("P")

DEVELOPMENT_KEY_FILE = Path("data/encryption.key")
"""The key of dev mode, unless one is set."""


def command(function: Callable[P, Coroutine[Any, Any, None]], *, exit_code: int = 1) -> Callable[P, None]:
    """Make a command of an async function, which runs on uvloop. `exit_code` is that of errors of the operator."""

    @wraps(function)
    def run_command(*args: P.args, **kwargs: P.kwargs) -> None:
        uvloop.run(function(*args, **kwargs))

    return report_errors(run_command, exit_code=exit_code)


def report_errors(function: Callable[P, None], *, exit_code: int = 1) -> Callable[P, None]:
    """Make a command of a function: protect its process, and print errors that an operator can fix as messages."""

    @wraps(function)
    def run_command(*args: P.args, **kwargs: P.kwargs) -> None:
        raise_fd_limit()
        protect_memory()

        def end(*lines: str) -> NoReturn:
            fail(*lines, *misspelled_names(), exit_code=exit_code)

        try:
            function(*args, **kwargs)
        except SettingsError as error:
            end("Invalid settings:", *error.problems)
        except ProvidersError as error:
            end("Invalid providers:", *error.problems)
        except InvalidFile as error:
            problems = name_files(error.problems, _environment_again())
            end("Invalid files of authentication and authorization:", *problems)
        except BrokenPipeError:
            raise  # the reader of the output has ended, as `head` does: typer ends quietly
        except OSError as error:
            end(describe_os_error(error))
        except StoreUnavailable as error:
            end(_explain(error))
        except (AddressTaken, KeyringError, SchemaError) as error:
            end(str(error))

    return run_command


def _explain(error: StoreUnavailable) -> str:
    """Name the cause."""
    return explain_outage(error, _environment_again().get("DATABASE_URL") or DEFAULT_DATABASE_URL)


def _environment_again() -> Mapping[str, str]:
    """The environment for a message about something else: without `.env` if that is no longer as it was."""
    try:
        return read_environment(Path.cwd(), max_wait=0.0)
    except SettingsError:
        return os.environ


def fail(message: str, *problems: str, exit_code: int = 1) -> NoReturn:
    """End the command with an error: a message, and the problems that it consists of."""
    raise CommandFailed(message, *problems, exit_code=exit_code)


def confirm(question: str) -> None:
    """Ask on standard error, and end the command unless the response is yes."""
    # typer's own question prints a space on standard output, which has results only.
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if answer.strip().lower() in {"y", "yes"}:
        return
    if not answer:  # the input has ended, as that of a script has
        print(file=sys.stderr)
    fail("Nothing was changed. Confirm with y, or pass --yes.")


async def load_settings(
    defaults: Mapping[str, str] | None = None, *, needs_key: bool = True
) -> tuple[Settings, dict[str, str]]:
    """The settings and the environment that they come from. Sets up logging. Raises `SettingsError`.

    `needs_key=False` is for commands that neither decrypt nor serve gRPC.
    """
    environment = {**(defaults or {}), **read_environment(Path.cwd())}
    try:
        settings = Settings.from_environment(environment, needs_key=needs_key)
    except SettingsError as error:
        raise SettingsError([*error.problems, *await _key_hint(error.problems, environment)]) from None
    configure_logging(settings.log_level)
    return settings, environment


async def _key_hint(problems: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
    """The ids of the keys that the database needs, if the key is invalid and the database is available."""
    database_url = environment.get("DATABASE_URL") or DEFAULT_DATABASE_URL
    if not any(problem.startswith("ENCRYPTION_KEY") for problem in problems):
        return ()
    try:
        location = parse_database_url(database_url)
        if isinstance(location, SqliteLocation) and not location.path.exists():
            return ()  # opening it would create it
        async with open_database(database_url) as database:
            await check_schema(database)
            key_ids = sorted({data_key.wrapping_key_id for data_key in await describe_data_keys(database)})
    except (SchemaError, StoreUnavailable, ValueError, OSError):
        return ()
    return [f"The data keys of this database are wrapped by key {', '.join(key_ids)}."] if key_ids else ()


@asynccontextmanager
async def open_prepared_storage() -> AsyncIterator[tuple[Settings, Storage]]:
    """The settings, and the database with an up-to-date schema and its keyring.

    On exit, the heads of what the command has written to the audit log are recorded.
    """
    settings, _ = await load_settings()
    settings = await prepare_database(settings)
    async with open_storage(settings) as storage, open_head_recorder(settings, storage.heads, utc_now):
        yield settings, storage


async def prepare_database(settings: Settings) -> Settings:
    """Check the schema.

    In dev mode, also migrate it, and add the local development key to the settings if none is set.
    """
    if settings.dev_mode:
        await migrate_schema(settings.database_url)
    async with open_database(settings.database_url) as database:
        await check_schema(database)
    if settings.dev_mode and settings.encryption_key is None and settings.kms_key_id is None:
        settings = settings.model_copy(update={"encryption_key": development_key(DEVELOPMENT_KEY_FILE)})
    return settings


def development_key(path: Path) -> bytes:
    """The key of this working copy, generated if there is none. Concurrent processes all get the same key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(new, path)  # atomic, and fails if another process was first
        new.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        fail(
            f"{path} is not a key: it must be {KEY_BYTES} bytes, not base64; it is {len(key)} bytes.",
            "Restore the key that was here, because nothing else decrypts its data. If the file is deleted, a new key "
            "is generated.",
        )
    if is_weak_key(key):
        fail(f"{path} is not a random key; delete it, so that a new one is generated.")
    return key
