"""The access log: whole lines of JSON in batches, and no text of others that adds a line or a field."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from integration_server.logs import configure_logging, new_access_log
from integration_server.observability.observed_calls import MAX_BATCH, AccessLog, CallIds, TerminalLog
from integration_server.redaction import redact_text

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
IDS = CallIds("request", f"00-{TRACE_ID}-00f067aa0ba902b7-01")


class Output:
    """An access log whose writes and timers tests see."""

    def __init__(self, clean: Callable[[str], str] = redact_text, process: str = "") -> None:
        self.written: list[str] = []
        self.timers: list[Callable[[], None]] = []
        self.log = AccessLog(
            self.written.append,
            clean,
            process=process,
            now=lambda: 1_700_000_000.25,
            call_later=lambda _seconds, function: self.timers.append(function),
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        self.log.flush()
        return [json.loads(line) for line in "".join(self.written).splitlines()]


def test_a_line_has_what_the_call_was_and_how_it_ended() -> None:
    output = Output(process="server-1")
    output.log.rpc("/s/M", "NOT_FOUND", "INTEGRATION_NOT_FOUND", 0.01234, "sync", IDS)
    assert output.lines == [
        {
            "timestamp": "2023-11-14T22:13:20.250000Z",
            "level": "info",
            "process": "server-1",
            "event": "rpc",
            "method": "/s/M",
            "status": "NOT_FOUND",
            "reason": "INTEGRATION_NOT_FOUND",
            "ms": 12.3,
            "caller": "sync",
            "request_id": "request",
            "trace_id": TRACE_ID,
        }
    ]


def test_a_line_of_an_http_request_has_the_same_form() -> None:
    output = Output(process="sidecar")
    output.log.http("POST", "/api/v1/webhooks/stripe/app", 200, "", 0.01234, "203.0.113.9", IDS)
    output.log.http("GET", "/api/v1/integrations/callback", 409, "STATE_USED", 0.001, "203.0.113.9", None)
    with_ids, without = output.lines
    assert with_ids == {
        "timestamp": "2023-11-14T22:13:20.250000Z",
        "level": "info",
        "process": "sidecar",
        "event": "http_request",
        "method": "POST",
        "path": "/api/v1/webhooks/stripe/app",
        "status": 200,
        "reason": "",
        "ms": 12.3,
        "caller": "203.0.113.9",
        "request_id": "request",
        "trace_id": TRACE_ID,
    }
    assert (without["status"], without["reason"], without["request_id"]) == (409, "STATE_USED", "")


def test_lines_are_written_together_within_a_moment_or_a_batch() -> None:
    output = Output()
    output.log.rpc("/s/M", "OK", "", 0.001, "sync", IDS)
    output.log.rpc("/s/M", "OK", "", 0.001, "sync", IDS)
    assert (output.written, len(output.timers)) == ([], 1)
    output.timers.pop()()
    assert [text.count("\n") for text in output.written] == [2]
    for _ in range(100):
        output.log.rpc("/s/M", "OK", "", 0.001, "sync", IDS)
    assert len(output.written) > 3
    assert all(len(text) <= MAX_BATCH and text.endswith("\n") for text in output.written)
    assert len(output.lines) == 102


INJECTIONS = ['a", "level": "error', "a\n{}", "a\u2028b", "\x1b[2J", "a\\", "Bearer 0123456789abcdef"]


@pytest.mark.parametrize("caller", INJECTIONS)
def test_a_caller_adds_no_line_field_or_secret(caller: str) -> None:
    output = Output()
    output.log.rpc("/s/M", "OK", "", 0.001, caller, IDS)
    (line,) = output.lines
    assert line["level"] == "info"
    text = "".join(output.written)
    assert text.isascii()
    assert "0123456789abcdef" not in text


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_request_adds_no_line_field_or_secret(text: str) -> None:
    output = Output()
    output.log.http(text, text, 200, text, 0.001, text, IDS)
    (line,) = output.lines
    assert line["level"] == "info"
    written = "".join(output.written)
    assert written.isascii()
    assert "0123456789abcdef" not in written


def test_without_cleaning_the_secret_is_in_the_line() -> None:
    """The negative control."""
    output = Output(clean=str)
    output.log.rpc("/s/M", "OK", "", 0.001, "Bearer 0123456789abcdef", IDS)
    assert output.lines[0]["caller"] == "Bearer 0123456789abcdef"


# --- the form of the log ---------------------------------------------------------------------------------------------


@pytest.fixture
def restored_logging() -> Any:
    config, handlers, level = structlog.get_config(), logging.root.handlers[:], logging.root.level
    yield
    structlog.configure(**config)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_it_has_the_form_of_the_other_lines(restored_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", process="server-2", terminal=False)
    log = new_access_log()
    assert isinstance(log, AccessLog)
    configure_logging("INFO", terminal=True)
    for_people = new_access_log()
    assert isinstance(for_people, TerminalLog)
    for_people.rpc("/s/M", "OK", "", 0.001, "", IDS)
    assert "/s/M" in capsys.readouterr().err


def test_a_level_above_info_leaves_it_out(restored_logging: None) -> None:
    configure_logging("WARNING", terminal=False)
    assert new_access_log() is None
