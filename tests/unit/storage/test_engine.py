"""Parsing of `DATABASE_URL`, and of JSON in the database."""

import json
import math
import random
import struct
from pathlib import Path

import pytest

from integration_server.storage.driver_queries import parse_json
from integration_server.storage.pools import PostgresLocation, SqliteLocation, parse_database_url

SECRET = "pa55-and-w0rd"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///data/integrations.db", "data/integrations.db"),
        ("sqlite:///./data/integrations.db", "data/integrations.db"),
        ("sqlite:////var/lib/it.db", "/var/lib/it.db"),
        ("sqlite+aiosqlite:///it.db", "it.db"),
        ("sqlite+pysqlite:///it.db", "it.db"),
    ],
)
def test_an_sqlite_path_is_parsed(url: str, path: str) -> None:
    assert parse_database_url(url) == SqliteLocation(Path(path))


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2", "postgres+x"]
)
def test_a_postgresql_url_gets_the_driver(scheme: str) -> None:
    server = parse_database_url(f"{scheme}://ann:{SECRET}@db.example:6432/it")
    assert isinstance(server, PostgresLocation)
    assert server.url.render_as_string(hide_password=False) == f"postgresql+asyncpg://ann:{SECRET}@db.example:6432/it"
    assert server.parameters == ""


def test_libpq_parameters_are_passed_on() -> None:
    server = parse_database_url(
        "postgres://ann@/it?host=/run/postgresql&sslmode=verify-full&sslrootcert=/etc/ca.pem&application_name=a%26b"
    )
    assert isinstance(server, PostgresLocation)
    assert server.url.query == {}
    assert server.parameters == (
        "host=%2Frun%2Fpostgresql&sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&application_name=a%26b"
    )


def test_the_password_is_hidden() -> None:
    assert SECRET not in repr(parse_database_url(f"postgresql://ann:{SECRET}@db.example/it"))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "not a database URL"),
        (SECRET, "not a database URL"),
        (f"postgresql:{SECRET}", "not a database URL"),
        (f"postgresql://ann@db.example:{SECRET}/it", "percent-encoded"),
        (f"postgresql://ann:{SECRET}@{SECRET}@db.example/it", "more than one @"),
        (f"postgresql://ann@db.example/it?password={SECRET}", "an unknown parameter"),
        (f"postgresql://ann@db.example/it?{SECRET}=1", "an unknown parameter"),
        (f"postgresql://ann:{SECRET}@{SECRET}/{SECRET}@db.example/it", "more than one @"),
        (f"postgresql://ann:{SECRET}@db.example:70000/it", "impossible port: expected 1 to 65535"),
        (f"postgresql://ann:{SECRET}@db.example:0/it", "impossible port"),
        (f"postgresql://ann@db.example/it?sslmode={SECRET}", "unknown sslmode: expected disable"),
        (f"postgresql://ann@db.example/it?sslnegotiation={SECRET}", "unknown sslnegotiation: expected postgres"),
        (f"postgresql://ann@db.example/it?target_session_attrs={SECRET}", "unknown target_session_attrs: expected any"),
        ("postgresql://ann@db.example/it?sslmode=disable&sslmode=require", "unknown sslmode"),
        (f"mysql://ann:{SECRET}@db.example/it", "unknown scheme"),
        (f"{SECRET}://db.example", "not a database URL"),
        ("sqlite://", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///file::memory:?cache=shared&uri=true", "must name a file"),
        (f"sqlite:///it.db?key={SECRET}", "no parameters"),
        ("sqlite://data/it.db", "three slashes"),
    ],
)
def test_an_error_names_the_problem_without_the_url(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_database_url(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


_TEXTS = [
    "[]",
    "{}",
    " [1 , 2 ]\n",
    "null",
    '"\\u0000\\ud83d\\ude00"',
    '["\\ud800", "\\udfff\\ud800"]',  # halves of surrogate pairs, which pydantic's parser rejects
    '{"a": 1, "a": 2, "b": {"a": true}}',
    str(2**63),
    str(-(2**200)),
    "-0",
    "-0.0",
    "1e5",
    "1E400",
    "-1e-400",
    "0.1",
    "5e-324",
    "1.7976931348623157e308",
    "9007199254740993.0",
    "[" * 300 + "]" * 300,
]


@pytest.mark.parametrize("text", _TEXTS, ids=lambda text: text[:20])
def test_stored_json_is_parsed_as_pythons_own_parser_does(text: str) -> None:
    """Otherwise an unaltered row would not be authentic: its associated data has the config as text."""
    assert repr(parse_json(text)) == repr(json.loads(text))


def test_numbers_that_python_has_written_are_read_as_the_same() -> None:
    rng = random.Random(1)
    numbers = [struct.unpack("d", rng.randbytes(8))[0] for _ in range(20_000)]
    numbers = [number for number in numbers if math.isfinite(number)] + [
        rng.randrange(-(2**70), 2**70) for _ in range(5_000)
    ]
    assert list(map(repr, parse_json(json.dumps(numbers)))) == list(map(repr, numbers))


@pytest.mark.parametrize("text", ["", "[", "{'a': 1}", "[1] x"])
def test_text_that_is_not_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
