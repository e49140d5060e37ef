"""An operator is told why the database is unavailable, and what to do; no message has a password."""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.engine import open_database
from integration_server.storage.outage_causes import explain_outage
from integration_server.storage.schema import check_schema, migrate
from tests.loopback import accepting

PASSWORD = "correct-horse"
HTTP_RESPONSE = b"HTTP/1.1 400 Bad Request\r\n\r\n"


async def explanation(url: str, connect_timeout: float = 30) -> str:
    """What an operator reads about a database that cannot be used."""
    with pytest.raises(StoreUnavailable) as caught:
        async with open_database(url, connect_timeout=connect_timeout) as database:
            await check_schema(database)
    assert PASSWORD not in str(caught.value)
    explained = explain_outage(caught.value, url)
    assert PASSWORD not in explained
    assert explained.startswith("DATABASE_URL: ")
    assert "; " in explained  # the remedy
    return explained


def url_of(host: str, port: int, query: str = "") -> str:
    """A URL with a password."""
    return f"postgresql://ada:{PASSWORD}@{host}:{port}/integrations{query}"


@asynccontextmanager
async def listening(response: bytes | None) -> AsyncIterator[int]:
    """A port on loopback that sends a response and closes; None: it never responds."""

    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if response is None:
            await asyncio.Event().wait()
        else:
            writer.write(response)

    async with accepting(respond) as port:
        yield port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_nothing_listens(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cause = await explanation(url_of(host, port))
    assert "connection refused by" in cause or "no route to" in cause  # of ::1, without IPv6
    assert str(port) in cause


async def test_an_unknown_host() -> None:
    assert "unknown host: no-such-host.invalid:5432" in await explanation(url_of("no-such-host.invalid", 5432))


async def test_no_socket_in_a_directory(tmp_path: Path) -> None:
    cause = await explanation(f"postgresql://ada:{PASSWORD}@/integrations?host={tmp_path}")
    assert f"no socket of a database at {tmp_path}" in cause


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "query", "reported"),
    [
        (None, "", "no response from 127.0.0.1"),
        (b"", "", "closed the connection"),
        (b"", "?sslmode=require", "closed the connection"),
        (HTTP_RESPONSE, "?sslmode=require", "TLS with 127.0.0.1"),
        (HTTP_RESPONSE, "?sslmode=disable", "DATABASE_URL"),
    ],
    ids=["silent", "closes", "closes-tls", "http-tls", "http"],
)
async def test_something_else_listens(response: bytes | None, query: str, reported: str) -> None:
    async with listening(response) as port:
        assert reported in await explanation(url_of("127.0.0.1", port, query), 1 if response is None else 30)


@pytest.mark.parametrize(
    ("query", "reported"),
    [
        ("sslmode=verify-full&sslrootcert={0}/missing.pem", "cannot read {0}/missing.pem: no such file"),
        ("sslmode=verify-full&sslrootcert={0}", "cannot read {0}: is a directory"),
        ("sslmode=verify-full&sslrootcert={0}/text", "{0}/text has no certificate in PEM; correct sslrootcert"),
        ("sslmode=require&sslcert={0}/text&sslkey={0}/text", "the pair of sslcert and sslkey"),
        ("sslmode=require&sslcert={0}/text&sslkey={0}/missing.key", "cannot read {0}/missing.key"),
    ],
)
async def test_a_tls_file_of_the_url_that_cannot_be_used(query: str, reported: str, tmp_path: Path) -> None:
    """The driver's own errors look like those of an absent database."""
    (tmp_path / "text").write_text("no PEM")
    cause = await explanation(url_of("127.0.0.1", 1, "?" + query.format(tmp_path)))
    assert reported.format(tmp_path) in cause


async def test_a_parameter_that_the_driver_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`verify-full` without `sslrootcert` needs the file of the user's home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cause = await explanation(url_of("127.0.0.1", 1, "?sslmode=verify-full"))
    assert "root certificate file" in cause
    assert "socket" not in cause


@pytest.mark.postgres
async def test_a_database_or_a_role_that_does_not_exist(postgres_url: str) -> None:
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    assert "no such database" in await explanation(postgres_url.replace(f"/{name}?", "/nowhere?"))
    assert "for the role nobody" in await explanation(postgres_url.replace("//postgres:", "//nobody:"))


async def test_password_login_and_other_states_of_the_server() -> None:
    """Every class of SQLSTATE that a start can end with has its own cause: none is called unavailable only."""
    causes = set()
    states = ("28P01", "28000", "3D000", "42501", "53300", "53100", "57P03", "57P01", "25006", "08P01")
    for state in states:
        error = asyncpg.PostgresError.new({"C": state, "M": f"password {PASSWORD}"})
        cause = explain_outage(error, url_of("db.internal", 5432))
        assert "db.internal:5432" in cause
        assert PASSWORD not in cause
        causes.add(cause)
    assert len(causes) == len(states)


def make_text(path: Path) -> None:
    path.write_text("no database" * 1000)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "missing" / "file")


@pytest.mark.parametrize(
    ("make", "name", "reported"),
    [
        (make_text, "", "is not an SQLite database"),
        (make_directory, "", "is a directory"),
        (make_text, "/below.db", "cannot write"),
        (make_broken_link, "", "no such file"),
    ],
    ids=["text", "directory", "below-a-file", "broken-link"],
)
async def test_a_path_that_is_no_database(
    make: Callable[[Path], None], name: str, reported: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    make(place)
    assert reported in await explanation(f"sqlite:///{place}{name}")


async def test_a_directory_that_nobody_can_write() -> None:
    assert "cannot write /proc/nowhere: no such file" in await explanation("sqlite:////proc/nowhere/x.db")


async def test_a_locked_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/locked.db"
    await migrate(url)
    other = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable) as caught:
            async with open_database(url, connect_timeout=0.1) as database, database.write_transaction():
                pass
        assert "is locked by another process" in explain_outage(caught.value, url)
    finally:
        other.close()
