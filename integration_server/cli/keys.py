"""The commands `keys …`, which manage the data keys."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from integration_server.cli.options import Json, JsonLines
from integration_server.cli.shared import command, fail, load_settings, open_prepared_storage, prepare_database
from integration_server.cli.tables import print_records, print_result
from integration_server.domain.audit import OPERATOR, Action, AuditEntry
from integration_server.settings import Settings
from integration_server.storage.data_keys import (
    DataKey,
    count_encrypted_values,
    describe_data_keys,
    describe_removed_keys,
    remove_data_key,
    rewrap,
)
from integration_server.storage.engine import open_database
from integration_server.storage.key_encryption import LocalKey
from integration_server.storage.rotation import Rotation, RotationProgress, RotationResult
from integration_server.wiring.storage import Storage
from integration_server.wiring.system import utc_now


@command
async def show_keys(as_json: JsonLines = False) -> None:
    """List the data keys: use, number of encrypted values, and the key that wraps each."""
    settings = await prepare_database((await load_settings())[0])
    async with open_database(settings.database_url) as database:
        records: list[Sequence[object]] = [
            (
                data_key.key_id,
                _describe_use(data_key),
                await count_encrypted_values(database, data_key.key_id),
                data_key.wrapping_key_id,
                data_key.create_time,
            )
            for data_key in await describe_data_keys(database)
        ]
        records += [
            (removed.key_id, f"removed at {removed.remove_time:%F %T} UTC", None, "", removed.create_time)
            for removed in await describe_removed_keys(database)
        ]
    columns = ("!data key", "use", "!values", "wrapped by", "!created (UTC)")
    nothing = "There is no data key yet: the first start of the server creates one."
    print_records(columns, records, nothing, as_json=as_json)
    if not as_json:
        _print_wrapping_keys(settings)


@command
async def add_key(as_json: Json = False) -> None:
    """Announce a new data key, which encrypts as soon as all servers know it. Previous keys still decrypt."""
    async with open_prepared_storage() as (settings, storage):
        key_id = await storage.keyring.add_data_key(settings.data_key_activation)
        await _record_audit(storage, f"add {key_id}")
    seconds = settings.data_key_activation.total_seconds()
    document = {"data_key": key_id, "activation_seconds": seconds}
    print_result(document, f"Data key {key_id} encrypts new values in {seconds:g} seconds.", as_json=as_json)


@command
async def rotate_keys(
    new_key: Annotated[bool, typer.Option(help="Without it, re-encrypt with the newest data key.")] = True,
    as_json: Json = False,
) -> None:
    """Replace the data key: announce a new one and re-encrypt all values with it while servers run.

    After a failure, run it again: it continues. The previous key stays until `keys remove`.
    """
    async with open_prepared_storage() as (settings, storage):
        rotation = Rotation(
            storage.database,
            storage.keyring,
            activation_delay=settings.data_key_activation,
            record_audit=partial(_record_audit, storage),
        )
        console = Console(stderr=as_json)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=as_json and not console.is_terminal) as progress:
            rotated = await rotation.rotate(_show_progress(progress), new_key=new_key)
        removable = [key for key in await describe_data_keys(storage.database) if key.removable_time is not None]
    print_result(
        {
            "data_key": rotated.key_id,
            "reencrypted_values": rotated.reencrypted,
            "unreadable_values": rotated.unreadable,
            "removable": [{"data_key": key.key_id, "remove_time": key.removable_time} for key in removable],
        },
        *_describe_rotation(rotated, removable),
        as_json=as_json,
    )
    if rotated.unreadable:
        fail(
            f"Values that cannot be decrypted and stay unchanged: {len(rotated.unreadable):,}",
            *rotated.unreadable[:10],
            "Their users must connect again; `keys remove` refuses until the rows are gone.",
        )


@command
async def rewrap_keys(as_json: Json = False) -> None:
    """Wrap the data keys with the current ENCRYPTION_KEY or KMS_KEY_ID, so that retired keys can be removed.

    With a key in OpenBao or Vault, also those that an older version of the key has wrapped.
    """
    async with open_prepared_storage() as (_, storage):
        count = await rewrap(storage.database, storage.keys, storage.keyring)
        await _record_audit(storage, f"rewrap with {storage.keys.current_id}")
    print_result(
        {"rewrapped_data_keys": count, "wrapped_by": storage.keys.current_id},
        f"{count} data keys were rewrapped. Key {storage.keys.current_id} wraps all data keys now.",
        as_json=as_json,
    )


@command
async def remove_key(
    data_key: Annotated[str, typer.Argument(help="The id, from `keys show`.")],
    force: Annotated[
        bool,
        typer.Option("--force", help="Skip the day of retention: journaled refreshes and tokens may need the key."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove a data key that no value needs, one day after it was replaced."""
    async with open_prepared_storage() as (_, storage):
        await remove_data_key(storage.keyring, data_key, force=force)
        await _record_audit(storage, f"remove {data_key}")
    print_result({"removed_data_key": data_key}, f"Data key {data_key} is removed.", as_json=as_json)


def _describe_use(key: DataKey) -> str:
    if key.is_announced:
        return f"encrypts from {key.active_time:%F %T} UTC"
    if key.is_active:
        return "encrypts new values" if key.is_rotation_complete else "encrypts new values; rotation not complete"
    return f"decrypts; removable from {key.removable_time:%F %T} UTC"


def _print_wrapping_keys(settings: Settings) -> None:
    if settings.kms_key_id is not None:
        typer.echo(f"KMS_KEY_ID is {settings.kms_key_id}.")
    for retired_id in settings.kms_key_ids_retired:
        typer.echo(f"KMS_KEY_IDS_RETIRED has {retired_id}.")
    if settings.encryption_key is not None:
        typer.echo(f"ENCRYPTION_KEY is key {LocalKey(settings.encryption_key).key_id}.")
    for retired in settings.encryption_keys_retired:
        typer.echo(f"ENCRYPTION_KEYS_RETIRED has key {LocalKey(retired).key_id}.")


def _show_progress(progress: Progress) -> Callable[[RotationProgress], Awaitable[None]]:
    task = progress.add_task("Announcing", total=None)

    async def on_progress(step: RotationProgress) -> None:
        if step.remaining:
            progress.update(task, description=f"Waiting for activation: {step.remaining.total_seconds():.0f} s")
            return
        progress.update(task, description="Re-encrypting", completed=step.done, total=step.total)

    return on_progress


def _describe_rotation(rotated: RotationResult, removable: Sequence[DataKey]) -> Iterator[str]:
    description = "all other values" if rotated.unreadable else "all values"
    yield f"Data key {rotated.key_id} encrypts {description} now: {rotated.reencrypted:,} values were re-encrypted."
    for key in removable:
        yield f"From {key.removable_time:%F %T} UTC you can run: keys remove {key.key_id}"


async def _record_audit(storage: Storage, description: str) -> None:
    """Record a change of keys in the audit log."""
    entry = AuditEntry(utc_now(), OPERATOR, Action.CHANGE_KEYS, purpose=description)
    await storage.audit_log.append([entry])
