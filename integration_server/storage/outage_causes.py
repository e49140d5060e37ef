"""Why a database is unavailable: the cause and the remedy, for the operator who starts a server or a command.

Callers get none of this: to them the database is unavailable, whatever the cause. No message has a password.
"""

import errno
import re
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import asyncpg
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.pools import PostgresLocation, SqliteLocation, parse_database_url

# SQLSTATEs, or their classes, of errors of a connection (PostgreSQL, appendix A).
_SQLSTATES = (
    (
        "28P01",
        "password refused by {server} for the role {role}",
        "correct the password; percent-encode what is special",
    ),
    (
        "28",
        "login refused by {server} for the role {role}",
        "check that the role exists and that pg_hba.conf admits it",
    ),
    ("3D000", "no such database on {server}: {database}", "create it, or correct the name at the end of the URL"),
    ("42501", "the role {role} lacks a permission in {database} on {server}", "grant it the schema's tables"),
    ("53300", "{server} has no connection left", "lower DATABASE_POOL_SIZE, or raise max_connections there"),
    ("53100", "the disk of {server} is full", "free space there"),
    ("57P03", "{server} is starting up or shutting down", "try again in a moment"),
    ("57", "{server} ended the connection", "try again; its log has the reason"),
    ("25006", "{server} is a read-only standby", "name the primary server, or add target_session_attrs=read-write"),
    ("08", "{server} closed the connection", "check that PostgreSQL listens there, and sslmode"),
)
_ERRNOS = {
    errno.ECONNREFUSED: ("connection refused by {server}", "start the database there, or correct host and port"),
    errno.ENOENT: ("no socket of a database at {server}", "start the database there, or correct host and port"),
    errno.EHOSTUNREACH: ("no route to {server}", "check network and firewall"),
    errno.ENETUNREACH: ("no route to {server}", "check network and firewall"),
    errno.ETIMEDOUT: ("no response from {server}", "check host, port and firewall"),
    errno.ECONNRESET: ("{server} closed the connection", "check that PostgreSQL listens there, and sslmode"),
    errno.EACCES: ("no permission to use the socket at {server}", "run as a user that may"),
}
_SQLITE_CODES = {
    sqlite3.SQLITE_NOTADB: ("{path} is not an SQLite database", "name another file"),
    sqlite3.SQLITE_CORRUPT: ("{path} is damaged", "restore it from a backup"),
    sqlite3.SQLITE_FULL: ("the disk of {path} is full", "free space there"),
    sqlite3.SQLITE_READONLY: ("cannot write {path}: it is read-only", "make it writable for the user of this process"),
    sqlite3.SQLITE_PERM: ("no permission to use {path}", "make it writable for the user of this process"),
    sqlite3.SQLITE_BUSY: ("{path} is locked by another process", "end that process, or wait for it"),
    sqlite3.SQLITE_LOCKED: ("{path} is locked by another process", "end that process, or wait for it"),
    sqlite3.SQLITE_CANTOPEN: ("cannot open {path}", "check that it is a file, in a directory that can be written"),
    sqlite3.SQLITE_IOERR: (
        "reading or writing {path} fails",
        "check the disk, and that it is not a network file system",
    ),
}
_TLS_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_ERRNO_IN_TEXT = re.compile(r"\[Errno (\d+)\]")  # of the errors that asyncio joins into one, for several addresses


def explain_outage(error: BaseException, database_url: str) -> str:
    """One line, `SETTING: cause; remedy`, for an error that has made the database or the keys unavailable.

    An error with a text of its own is not the database's, but of the store of the key-encryption keys.
    """
    if isinstance(error, StoreUnavailable) and str(error) != StoreUnavailable.message:
        return str(error)
    location = parse_database_url(database_url)
    if isinstance(location, PostgresLocation) and (problem := _tls_file_problem(location)) is not None:
        return f"DATABASE_URL: {problem}"
    explain = _explain_sqlite if isinstance(location, SqliteLocation) else _explain_postgres
    for cause in _causes(error):
        if (explained := explain(cause)) is not None:
            problem, remedy = explained
            return f"DATABASE_URL: {problem.format_map(_names(location))}; {remedy}"
    return "DATABASE_URL: the database is unavailable: {server}; its log may say why".format_map(_names(location))


def _names(location: SqliteLocation | PostgresLocation) -> dict[str, str]:
    if isinstance(location, SqliteLocation):
        return {"server": str(location.path), "path": str(location.path)}
    url = location.url
    host = url.host or _host_parameter(location) or "localhost"
    return {
        "server": host if host.startswith("/") else f"{host}:{url.port or 5432}",
        "role": url.username or "of the operating system's user",
        "database": url.database or url.username or "of the same name as the role",
    }


def _tls_file_problem(location: PostgresLocation) -> str | None:
    """The first TLS file of the URL that cannot be used. The driver's error does not say which, if it says anything."""
    files = {name: values[0] for name, values in parse_qs(location.parameters).items() if name in _TLS_FILES}
    for name, path in files.items():
        try:
            Path(path).read_bytes()
        except OSError as error:
            return f"cannot read {path}: {(error.strerror or '').lower()}; correct {name}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        try:
            context.load_verify_locations(files.get(name))
        except ssl.SSLError:
            return f"{files[name]} has no certificate in PEM; correct {name}"
        except TypeError:  # there is none
            continue
    try:
        if "sslcert" in files:
            context.load_cert_chain(files["sslcert"], files.get("sslkey"), password="")  # do not ask for one
    except ssl.SSLError:
        return "the pair of sslcert and sslkey is no certificate and its key, in PEM without a password; correct both"
    return None


def _host_parameter(location: PostgresLocation) -> str:
    return parse_qs(location.parameters).get("host", [""])[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors that led to one, the innermost first: the driver's, then those that wrap it.

    Before all of them comes what the driver says of the URL's parameters: it wraps a missing file.
    """
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = getattr(current, "orig", None) or current.__cause__ or current.__context__
    chain.reverse()
    return iter(sorted(chain, key=lambda each: not isinstance(each, asyncpg.ClientConfigurationError)))


def _explain_postgres(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return next(((cause, remedy) for prefix, cause, remedy in _SQLSTATES if state.startswith(prefix)), None)
    if isinstance(error, asyncpg.ClientConfigurationError):  # of the parameters; it quotes no password
        return "the connection cannot be made: " + _escaped(
            str(error).partition("\n")[0]
        ), "correct the URL's parameters"
    if isinstance(error, socket.gaierror):
        return "unknown host: {server}", "correct the host name, or check DNS"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {{server}} is not valid: {error.verify_message}", "correct sslrootcert or sslmode"
    if isinstance(error, ssl.SSLError) or "SSL" in str(error):
        return "TLS with {server} fails", "check sslmode, and that the server has TLS switched on"
    if isinstance(error, OSError):
        numbers = [error.errno, *map(int, _ERRNO_IN_TEXT.findall(str(error)))]
        other = _ERRNOS[errno.ECONNRESET] if isinstance(error, ConnectionError) else _timeout(error)
        return next((_ERRNOS[number] for number in numbers if number in _ERRNOS), other)
    return _timeout(error)


def _escaped(text: str) -> str:
    """The text with braces that `format_map` prints as they are."""
    return text.replace("{", "{{").replace("}", "}}")


def _timeout(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, TimeoutError):
        return "no response from {server} in time", "check host, port and firewall, and the load of the database"
    if isinstance(error, PoolTimeoutError):
        return "all connections to {server} are in use", "raise DATABASE_POOL_SIZE"
    return None


def _explain_sqlite(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, sqlite3.Error):
        return _SQLITE_CODES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or "{path}"
        return f"cannot write {place}: {error.strerror.lower()}", "name a file in a directory that can be written"
    return _timeout(error)
