"""The command `doctor`: checks what a server needs, before it starts or while it runs. It changes nothing."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from integration_server.cli.operations import expiry_warnings
from integration_server.cli.shared import DEVELOPMENT_KEY_FILE, development_key
from integration_server.cli.tables import print_table
from integration_server.command_errors import CommandFailed
from integration_server.domain.callers import IdentityKind
from integration_server.domain.errors import StoreUnavailable, UnknownIntegrationType
from integration_server.hot_reload import InvalidFile
from integration_server.pem_validation import pair_problems, validity_period
from integration_server.providers.factory import ProvidersError
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.policy import read_policy
from integration_server.settings import Settings, SettingsError, name_files, read_environment
from integration_server.storage.data_keys import describe_data_keys
from integration_server.storage.engine import open_database
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.keyring import open_keyring
from integration_server.storage.outage_causes import explain_outage
from integration_server.storage.pools import SqliteLocation, parse_database_url
from integration_server.storage.refresh_journal import FileRefreshJournal, require_writable
from integration_server.storage.schema import SchemaError, check_schema
from integration_server.wiring.auth import open_issuers
from integration_server.wiring.distributed_limiter import open_distributed_limiter
from integration_server.wiring.keys import open_key_encryptions
from integration_server.wiring.providers import build_providers
from integration_server.wiring.setting_names import misspelled_names, unknown_names
from integration_server.wiring.system import utc_now

_CERTIFICATE_NOTICE = timedelta(days=30)
_MAX_CLOCK_SKEW = timedelta(seconds=2)  # tokens are renewed minutes before they expire; attempts expire by both clocks


class Status(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found; `detail` says what to do about a warning or a failure."""

    check: str
    status: Status
    detail: str


Check = Callable[[Settings, Mapping[str, str]], AsyncIterator[tuple[Status, str]]]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of check, status and detail.")] = False,
) -> None:
    """Check database, schema, keys, providers, callback URLs, clock, certificates, policy, Redis and journal.

    Changes nothing. The exit code is 1 if a check fails; a warning is no failure.
    """
    findings = uvloop.run(_run_checks())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    elif not sys.stdout.isatty():
        print_table(("check", "status", "detail"), [[each.check, each.status, each.detail] for each in findings], "")
    else:
        styles = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}
        table = Table("check", "status", "detail")
        for finding in findings:
            detail = Text(finding.detail, overflow="fold")
            table.add_row(finding.check, Text(finding.status, styles[finding.status]), detail)
        Console().print(table)
    raise typer.Exit(any(finding.status is Status.FAILED for finding in findings))


async def _run_checks() -> Sequence[Finding]:
    try:
        environment = read_environment(Path.cwd())
        settings = Settings.from_environment(environment)
    except SettingsError as error:
        findings = [Finding("settings", Status.FAILED, problem) for problem in error.problems]
        findings += [Finding("settings", Status.WARNING, name) for name in misspelled_names()]
        return [*findings, Finding("others", Status.SKIPPED, "they need settings that are valid")]
    findings = [Finding("settings", Status.OK, "valid")]
    if settings.refresh_lease <= settings.provider_timeout:
        problem = (
            "REFRESH_LEASE_SECONDS: is not longer than PROVIDER_TIMEOUT_SECONDS; another server may refresh meanwhile"
        )
        findings = [Finding("settings", Status.WARNING, problem)]
    for name, check in CHECKS.items():
        findings += [Finding(name, status, detail) async for status, detail in _caught(check, settings, environment)]
    return findings


async def _caught(
    check: Check, settings: Settings, environment: Mapping[str, str]
) -> AsyncIterator[tuple[Status, str]]:
    """What a check yields; an error that an operator can fix is a failure of it."""
    try:
        async for status, detail in check(settings, environment):
            yield status, detail
    except StoreUnavailable as error:
        yield Status.FAILED, explain_outage(error, settings.database_url)
    except (SettingsError, ProvidersError, InvalidFile) as error:
        for problem in name_files(error.problems, environment):
            yield Status.FAILED, problem
    except (CommandFailed, KeyringError, SchemaError, OSError) as error:
        yield Status.FAILED, str(error)


# --- checks ----------------------------------------------------------------------------------------------------------


async def _names(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    providers = build_providers(settings, environment, ProviderHttp(utc_now)).all()
    unknown = unknown_names(Path.cwd(), providers)
    for name in unknown:
        yield Status.WARNING, str(name)
    if not unknown:
        yield Status.OK, "every name in .env is a setting"


async def _database(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    location = parse_database_url(settings.database_url)
    if isinstance(location, SqliteLocation) and not location.path.exists():
        status = Status.OK if settings.dev_mode else Status.WARNING
        yield status, f"{location.path} does not exist yet; `migrate` creates it"
        return
    begin = time.perf_counter()
    async with open_database(settings.database_url) as database:
        await database.current_time()
        connected = time.perf_counter()
        skew = utc_now() - await database.current_time()
        yield Status.OK, f"responds {(connected - begin) * 1000:.0f} ms after the first connection began"
        if abs(skew) > _MAX_CLOCK_SKEW:
            yield (
                Status.WARNING,
                f"its clock differs from this machine's by {skew.total_seconds():+.1f} s; synchronize both (NTP)",
            )
        else:
            yield Status.OK, f"its clock differs by {abs(skew).total_seconds():.2f} s"


async def _schema(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    if not _has_database(settings):
        yield Status.SKIPPED, "there is no database yet"
        return
    async with open_database(settings.database_url) as database:
        await check_schema(database)
    yield Status.OK, "this version runs on it"


async def _keys(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    if settings.encryption_key is None and settings.kms_key_id is None:
        if not DEVELOPMENT_KEY_FILE.exists():
            yield Status.SKIPPED, "in dev mode a key is generated in ./data at the first start"
            return
        settings = settings.model_copy(update={"encryption_key": development_key(DEVELOPMENT_KEY_FILE)})
    keys = await open_key_encryptions(settings)
    if not _has_database(settings):
        yield Status.OK, "valid; there is no database yet whose data keys it would unwrap"
        return
    async with open_database(settings.database_url) as database:
        await check_schema(database)
        data_keys = await describe_data_keys(database)
        if data_keys:  # without any, opening the keyring would create one
            await open_keyring(database, keys)
    yield Status.OK, f"unwraps all data keys: {len(data_keys)}"


async def _providers(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    providers = build_providers(settings, environment, ProviderHttp(utc_now)).all()
    configured = [provider for provider in providers if not provider.missing_settings]
    for provider in providers:
        if provider.missing_settings and any(environment.get(name) for name in provider.setting_names):
            missing = ", ".join(provider.missing_settings)
            yield Status.WARNING, f"{provider.integration_type}: some of its settings are set; missing: {missing}"
    for warning in expiry_warnings(configured, utc_now().date()):
        yield Status.WARNING, warning.removeprefix("warning: ")
    yield Status.OK, f"{len(configured)} of {len(providers)} types are configured; `types` lists what others need"


async def _callback_urls(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    url = f"{settings.public_url.rstrip('/')}/api/v1/integrations/callback"
    yield Status.OK, f"register at each provider: {url}"
    if not settings.allowed_return_urls and not settings.dev_mode:
        yield Status.WARNING, "ALLOWED_RETURN_URLS is not set: users stay on a page of the sidecar after connecting"


async def _certificates(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    files = {
        "TLS_CERT_FILE": settings.tls_cert_file,
        "TLS_CLIENT_CA_FILE": settings.tls_client_ca_file,
        "SIDECAR_TLS_CERT_FILE": settings.sidecar_tls_cert_file,
        "SIDECAR_TLS_CA_FILE": settings.sidecar_tls_ca_file,
    }
    if not any(files.values()):
        yield Status.SKIPPED, "TLS is not used"
    for setting, path in files.items():
        if path is None:
            continue
        try:
            begin, end = validity_period(await asyncio.to_thread(path.read_bytes))
        except ValueError:
            yield Status.FAILED, f"{setting}: {path}: is not a certificate in PEM"
            continue
        yield _validity(setting, begin, end, utc_now())
    for certificate, key in (
        (settings.tls_cert_file, settings.tls_key_file),
        (settings.sidecar_tls_cert_file, settings.sidecar_tls_key_file),
    ):
        if certificate is not None and key is not None:
            problems = pair_problems(certificate, certificate.read_bytes(), key, key.read_bytes())
            for problem in name_files(problems, environment):
                yield Status.FAILED, problem


def _validity(setting: str, begin: datetime, end: datetime, now: datetime) -> tuple[Status, str]:
    if now < begin:
        return Status.FAILED, f"{setting}: valid from {begin:%F %R} UTC only; check the clock"
    if end <= now:
        return Status.FAILED, f"{setting}: expired on {end:%F %R} UTC; replace it, a server reads it again by itself"
    if end - now < _CERTIFICATE_NOTICE:
        return Status.WARNING, f"{setting}: expires on {end:%F %R} UTC; replace it, a server reads it again by itself"
    return Status.OK, f"{setting}: valid until {end:%F} UTC"


async def _policy(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    if settings.policy_file is None:
        yield Status.WARNING, "POLICY_FILE is not set: callers are not authenticated, and may name any user"
        return
    providers = build_providers(settings, environment, ProviderHttp(utc_now))

    def canonical_type(integration_type: str) -> str:
        try:
            return providers[integration_type].integration_type
        except UnknownIntegrationType:
            return integration_type

    path = settings.policy_file
    read_policy({path: await asyncio.to_thread(path.read_bytes)}, canonical_type)
    yield Status.OK, f"{path} is valid"


async def _token_issuers(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    locations = {"JWT_JWKS": settings.jwt_jwks, "USER_JWT_JWKS": settings.user_jwt_jwks}
    if not any(locations.values()):
        yield Status.SKIPPED, "no token of an issuer is accepted: JWT_JWKS and USER_JWT_JWKS are not set"
        return
    async with open_issuers(settings, utc_now) as issuers:
        for issuer in issuers:
            await issuer.keys.poll()
            setting = "USER_JWT_JWKS" if issuer.kind is IdentityKind.USER else "JWT_JWKS"
            if issuer.keys.value.keys:
                yield Status.OK, f"{setting}: the keys of {issuer.issuer} are there"
            else:
                yield Status.FAILED, f"{setting}: no keys at {locations[setting]}; check address, network and DNS"


async def _redis(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    if settings.rate_limit_redis_url is None:
        yield Status.SKIPPED, "RATE_LIMIT_REDIS_URL is not set: each server counts calls to providers for itself"
        return
    async with open_distributed_limiter(settings.rate_limit_redis_url) as limiter:
        if limiter is not None and await limiter.is_available():
            yield Status.OK, "responds"
        else:
            yield Status.FAILED, "RATE_LIMIT_REDIS_URL: no response; until it responds each server counts for itself"


async def _journal(settings: Settings, _environment: Mapping[str, str]) -> AsyncIterator[tuple[Status, str]]:
    directory = settings.refresh_journal_dir
    if not directory.exists():
        parent = next(parent for parent in directory.absolute().parents if parent.exists())
        is_writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
        if is_writable:
            yield Status.OK, f"{directory} does not exist yet; the first start creates it"
        else:
            yield Status.FAILED, f"REFRESH_JOURNAL_DIR: cannot write {parent}; name a directory that can be written"
        return
    await asyncio.to_thread(require_writable, directory)
    count = await FileRefreshJournal(directory).count()
    if count:
        yield Status.WARNING, f"{count} refreshes wait in {directory} for the database; a running server commits them"
    else:
        yield Status.OK, f"{directory} can be written, and is empty"


def _has_database(settings: Settings) -> bool:
    location = parse_database_url(settings.database_url)
    return not isinstance(location, SqliteLocation) or location.path.exists()


CHECKS: Mapping[str, Check] = {
    "names": _names,
    "database": _database,
    "schema": _schema,
    "keys": _keys,
    "providers": _providers,
    "callback URL": _callback_urls,
    "certificates": _certificates,
    "policy": _policy,
    "token issuers": _token_issuers,
    "Redis": _redis,
    "refresh journal": _journal,
}
"""The checks by name, in the order in which they are shown."""
