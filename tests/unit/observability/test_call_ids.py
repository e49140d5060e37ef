"""The ids of calls: those of callers are taken if they are harmless, and replaced otherwise."""

from functools import partial
from itertools import count

import pytest

from integration_server.observability.observed_calls import (
    MAX_REQUEST_ID_LENGTH,
    REQUEST_ID,
    TRACEPARENT,
    CallIdReader,
    CallIds,
    add_ids,
    current_ids,
    new_request_id,
)
from integration_server.redaction import redact_text

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"

HARMLESS = [
    "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",  # Envoy, and most libraries
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",  # ULID
    "f81d4fae-7dec-11d0-a765-00a0c91e6bf6#42",  # Kong
    "7d1f2a3b4c5d6e7f-FRA",  # Cloudflare
    "1-67891233-abcdef012345678912345678",  # AWS
    "Root=1-67891233-abcdef012345678912345678",
    "105445aa7843bc8bf206b12000100000/1",  # Google Cloud
    f"00-{TRACE_ID}-{SPAN_ID}-01",
    "host/abc-000001",  # Go's chi
    "7",
    "x" * MAX_REQUEST_ID_LENGTH,
]
HARMFUL = [
    "",
    "x" * (MAX_REQUEST_ID_LENGTH + 1),
    'a", "level": "error',
    "a\nb",
    "a\r\nset-cookie: b",
    "a b",
    "\x1b[31mred",
    "ä",
    "../../etc",
    "<script>",
    "-rf",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2ln",  # a JWT
    "ghp_0123456789abcdefghij0123456789abcdef",
    "xoxb-123456789012-abcdefghij",
    "token=0123456789abcdef",
]


def reader(*, accepts_any: bool = False) -> CallIdReader:
    numbers = count()
    redact = partial(redact_text, escape=str)
    return CallIdReader(redact, lambda: f"new-{next(numbers)}", accepts_any=accepts_any)


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_request_id_is_taken(text: str) -> None:
    assert reader().read([("user-agent", "x"), (REQUEST_ID, text)]) == CallIds(text)


@pytest.mark.parametrize("text", HARMFUL)
def test_any_other_one_is_replaced(text: str) -> None:
    assert reader().read([(REQUEST_ID, text)]) == CallIds("new-0")


@pytest.mark.parametrize("text", list(filter(None, HARMFUL)))
def test_without_the_check_it_would_be_taken(text: str) -> None:
    """The negative control."""
    assert reader(accepts_any=True).read([(REQUEST_ID, text)]) == CallIds(text)


@pytest.mark.parametrize("entries", [[], [(REQUEST_ID, "a"), (REQUEST_ID, "b")], [(REQUEST_ID, b"a")]])
def test_a_call_without_one_id_gets_a_new_one(entries: list[tuple[str, str | bytes]]) -> None:
    read = reader()
    assert [read.read(entries).request_id, read.read(entries).request_id] == ["new-0", "new-1"]
    assert read.caller_request_id(entries) == ""


def test_new_ids_differ_and_are_taken_by_the_next_server() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(reader().caller_request_id([(REQUEST_ID, one)]) == one for one in ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", TRACE_ID),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", TRACE_ID),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes-later", TRACE_ID),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01.", ""),
        (f"00-{TRACE_ID}-{SPAN_ID}-01-", ""),
        (f"00-{TRACE_ID}-{SPAN_ID}-01-what-comes-later", ""),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", ""),
        (f"00-{'0' * 32}-{SPAN_ID}-01", ""),
        (f"00-{TRACE_ID}-{'0' * 16}-01", ""),
        (f"00-{TRACE_ID.upper()}-{SPAN_ID}-01", ""),
        (f"00-{TRACE_ID}-{SPAN_ID}-01\n", ""),
        (f"00-{TRACE_ID}", ""),
        ("", ""),
    ],
)
def test_the_trace_id_is_that_of_a_valid_traceparent(text: str, expected: str) -> None:
    assert reader().read([(TRACEPARENT, text)]).trace_id == expected


def test_log_lines_of_a_call_have_its_ids() -> None:
    assert add_ids(None, "info", {"event": "x"}) == {"event": "x"}
    token = current_ids.set(CallIds("r", f"00-{TRACE_ID}-{SPAN_ID}-01"))
    try:
        assert add_ids(None, "info", {"event": "x"}) == {"event": "x", "request_id": "r", "trace_id": TRACE_ID}
    finally:
        current_ids.reset(token)
