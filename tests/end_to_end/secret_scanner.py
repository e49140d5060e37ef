"""Scans logs and databases for secrets, in every usual encoding.

When a system of the end-to-end tests ends, its logs and its database are scanned for the secrets that passed through
it: see `assert_no_secrets`.
"""

import base64
import binascii
import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from integration_server.storage.pools import SqliteLocation, parse_database_url
from integration_server.storage.tables import metadata

# Hexadecimal runs long enough to be a value, such as each `bytea` in a PostgreSQL dump.
_HEX_RUN = re.compile(rb"(?:[0-9a-fA-F]{2}){8,}")
_MIN_LENGTH = 12
_EMPTY_PART = re.compile(rb"\0{64,}")  # of the pages of a database file: nine tenths of an SQLite file


class SecretLeaked(AssertionError):
    """A log or a database contains a secret."""


def forms(secret: str) -> Iterator[tuple[str, bytes]]:
    """The secret in plain text, escaped, in hexadecimal, and in base64 at each offset in the encoded text."""
    raw = secret.encode()
    assert len(raw) >= _MIN_LENGTH, "so short that it may occur by chance"
    yield "plain", raw
    yield "reversed", raw[::-1]
    yield "UTF-16", secret.encode("utf-16-le")
    yield "url", quote(secret, safe="").encode()
    yield "every byte percent-encoded", b"".join(b"%%%02X" % byte for byte in raw)
    yield "JSON", json.dumps(secret)[1:-1].encode()
    yield "JSON, with slashes escaped too", json.dumps(secret)[1:-1].replace("/", "\\/").encode()
    yield "JSON, every character escaped", "".join(f"\\u{ord(letter):04x}" for letter in secret).encode()
    yield "hex", binascii.hexlify(raw)
    yield "HEX", binascii.hexlify(raw).upper()
    for offset in range(3):
        # Only the characters that depend on the secret alone: those at either end have bits of its neighbours.
        encoded = base64.b64encode(b"\0" * offset + raw)
        certain = encoded[(0, 2, 3)[offset] : (offset + len(raw)) * 8 // 6]
        yield f"base64, offset {offset}", certain
        yield f"base64url, offset {offset}", certain.translate(bytes.maketrans(b"+/", b"-_"))


def with_decoded_hex(text: bytes) -> Iterator[bytes]:
    """The dump, and the decoded bytes of each of its hexadecimal runs."""
    yield text
    for run in _HEX_RUN.findall(text):
        yield binascii.unhexlify(run)


def find_secrets(secrets: Mapping[str, Iterable[str]], sources: Mapping[str, bytes]) -> set[tuple[str, str, str]]:
    """Find secrets: kind, source and form of each. The result has names only, so that a failing test shows no secret.

    Makes one pass over each text, for any number of secrets.
    """
    needles = defaultdict(list)
    for kind, values in secrets.items():
        for form, needle in (pair for value in set(values) for pair in forms(value)):
            needles[needle[:_MIN_LENGTH]].append((kind, form, needle))
    return {
        (kind, source, form)
        for source, content in sources.items()
        for text in with_decoded_hex(_EMPTY_PART.sub(b"\0", content))
        for offset_in_text in range(len(text) - _MIN_LENGTH + 1)
        if (prefix := text[offset_in_text : offset_in_text + _MIN_LENGTH]) in needles
        for kind, form, needle in needles[prefix]
        if text.startswith(needle, offset_in_text)
    }


# --- whole systems -------------------------------------------------------------------------------------------------


def assert_no_secrets(secrets: Mapping[str, Iterable[str]], sources: Mapping[str, bytes]) -> None:
    """Raise `SecretLeaked` if a source contains a secret. Ignores secrets so short that they occur by chance."""
    long_enough = {kind: [value for value in values if len(value) >= _MIN_LENGTH] for kind, values in secrets.items()}
    if leaks := find_secrets(long_enough, sources):
        raise SecretLeaked(sorted(leaks))


async def dump_rows(database_url: str) -> bytes:
    """All rows of all tables."""
    queries = [f"SELECT * FROM {table.name}" for table in metadata.sorted_tables]
    location = parse_database_url(database_url)
    rows: list[Iterable[Any]] = []
    # Through the drivers, since every system ends with this, and SQLAlchemy would compile each query again.
    if isinstance(location, SqliteLocation):
        with closing(sqlite3.connect(location.path, timeout=60)) as connection:
            rows += [row for query in queries for row in connection.execute(query)]
    else:
        postgres = await asyncpg.connect(database_url, statement_cache_size=0)
        try:
            rows += [row for query in queries for row in await postgres.fetch(query)]
        finally:
            await postgres.close()
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row)


def read_database_files(database_url: str) -> Mapping[str, bytes]:
    """SQLite's file and its WAL, including deleted and not yet overwritten data; empty for PostgreSQL."""
    database = parse_database_url(database_url)
    if not isinstance(database, SqliteLocation):
        return {}
    files = (database.path, database.path.with_name(database.path.name + "-wal"))
    return {path.name: path.read_bytes() for path in files if path.exists()}


def read_files(directory: Path, *patterns: str) -> Mapping[str, bytes]:
    """The contents of the files whose names match."""
    paths = [path for pattern in patterns for path in directory.glob(pattern) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def secret_variables(environment: Mapping[str, str]) -> Mapping[str, Iterable[str]]:
    """The environment variables that no output may contain."""
    return {
        name: value.split(",")
        for name, value in environment.items()
        if name.endswith(("_KEY", "_SECRET", "_KEYS_RETIRED", "_TOKEN"))
    }
