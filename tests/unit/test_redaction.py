"""Redaction: values that look like secrets are replaced, others stay. Without it, the secrets appear."""

import base64
import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pytest
import structlog

from integration_server.domain.text_escaping import cut_marker
from integration_server.logs import configure_logging
from integration_server.redaction import PATTERNS, REDACTED, redact, redact_text, strip_exception_text

RANDOM = "Zx9" + secrets.token_urlsafe(24).replace("-", "a").replace("_", "b")
HEX = os.urandom(16).hex()


def encrypted_value() -> str:
    """A value in the format of a state: format 1, then random-looking bytes."""
    return base64.urlsafe_b64encode(b"\x01" + os.urandom(140)).decode().rstrip("=")


def jwt() -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"RS256"}').decode().rstrip("=")
    return f"{header}.{secrets.token_urlsafe(40)}.{secrets.token_urlsafe(40)}"


BY_SHAPE = {
    "encrypted": encrypted_value(),
    "JWT": jwt(),
    "Stripe": f"sk_live_{RANDOM}",
    "Stripe, restricted": f"rk_live_{RANDOM}",
    "Stripe's webhooks": f"whsec_{RANDOM}",
    "Slack": f"xoxb-1234567890-{RANDOM}",
    "GitHub": f"ghp_{RANDOM}",
    "GitHub, fine-grained": f"github_pat_{RANDOM}",
    "GitLab": f"glpat-{RANDOM}",
    "Google, access": f"ya29.{RANDOM}",
    "Google, refresh": f"1//0{RANDOM}",
    "Google, code": f"4/0{RANDOM}",
    "Google, client": f"GOCSPX-{RANDOM}",
    "Meta": f"EAAB{RANDOM}",
    "Square": f"sq0atp-{RANDOM}",
    "SendGrid": f"SG.{RANDOM}.{RANDOM}",
    "Twilio, account": f"AC{HEX}",
    "Twilio, key": f"SK{HEX}",
    "Shopify": f"shpat_{HEX}",
    "AWS": "AKIA" + "Q7X2" * 4,
}
AROUND = (
    "{}",
    "before {} after",
    '"{}"',
    "x={}&y=1",
    "https://p.example/?q={}#f",
    "({})",
    "\\u0022{}\\u0022",
    "a\n{}\nb",
)

BY_NAME = [
    "access_token={}",
    "&refresh_token={}&x=1",
    '{{"id_token": "{}"}}',
    "{{'client_secret': '{}'}}",
    '{{\\"api_key\\": \\"{}\\"}}',
    "Authorization: Bearer {}",
    "authorization: Basic {}",
    "X-Api-Key: {}",
    "Cookie: first=1; session={}",
    "confirmation_token%3D{}",
    "Token(access_token=b'{}', n=1)",
    "clientSecret={}",
    "code_verifier = {}",
    "PASSWORD={}",
    "code={}&state=x",
    '"state": "{}"',
    "postgresql://server:{}@db.example/integrations",
    "redis://:p@{}@db.example,other.example",
    "{{'access_token': ['{}']}}",
    "got bearer {}",
    "api_key => {}",
    "secret := {}",
    "uid=server;pwd={};",
]

HARMLESS = [
    "refreshed",
    "/api/v1/integrations/callback/sandbox",
    "2026-11-22T22:54:14.000001Z",
    "STATE_INVALID",
    "reason=STATE_INVALID code=UNAVAILABLE state=taken",
    "integration 42 of google_calendar: PROVIDER_UNAVAILABLE after 10.0 s",
    "data key 00ff00ff00ff00ff is wrapped by key 89abcdef, which is not configured; configured: 01234567",
    'File "/srv/service/credentials/refresher.py", line 12, in refresh await provider.refresh()',
    "8c1c2f0e-6d5b-4d5e-9e6a-0b0a0c0d0e0f",
    "127.0.0.1:50051",
    "PWD=/srv/app OLDPWD='/srv' pwd: ~",
    "an authorization entry that is not a bearer token; bearer authentication is required",
    "http://127.0.0.1:8080/user@example.com and a@b.example",
    "https://accounts.example.com",
    "Ада",
    "",
]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", BY_SHAPE)
def test_a_secret_is_detected_by_its_format(kind: str, around: str) -> None:
    assert BY_SHAPE[kind] not in redact_text(around.format(BY_SHAPE[kind]))
    assert REDACTED in redact_text(around.format(BY_SHAPE[kind]))


@pytest.mark.parametrize("text", BY_NAME)
def test_a_secret_is_detected_by_its_name(text: str) -> None:
    assert RANDOM not in redact_text(text.format(RANDOM))


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    assert redact_text(text) == text


# --- run time ------------------------------------------------------------------------------------------------------


Patterns = Sequence[tuple[re.Pattern[str], str]]


def growth(unit: str, length: int = 1_024, patterns: Patterns = PATTERNS) -> float:
    """The factor by which the time grows for a text eight times as long: 8 if linear, 64 if quadratic."""

    def seconds(text: str) -> float:
        begin = time.process_time()
        redact_text(text, max_length=sys.maxsize, patterns=patterns)
        return time.process_time() - begin

    text = unit * (length // len(unit))
    return min(seconds(text * 8) for _ in range(3)) / min(seconds(text) for _ in range(25))


MAX_GROWTH = 24


@pytest.mark.parametrize(
    "unit",
    [
        "a_", "token", "token=", "token ", "eyJ", "éeyJ", "Bearer ", "bearer a", "state=a", "key=", "key=[", "%41key=",
        "://a:", "://a:@", "@", "pwd=/", "SG.aaaaaaaa", "cookie ", "-----BEGIN A", "-----BEGIN PRIVATE KEY-----", '\\"',
    ],
)  # fmt: skip
def test_the_time_grows_linearly(unit: str) -> None:
    assert growth(unit) < MAX_GROWTH


def without_bounds(pattern: re.Pattern[str]) -> re.Pattern[str]:
    assert "{0,31}?" in pattern.pattern
    return re.compile(pattern.pattern.replace("{0,31}?", "*"), pattern.flags)


def without_ascii_words(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern.pattern, pattern.flags & ~re.ASCII)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "weaken", "unit", "length"),
    [(1, without_bounds, "key=", 1_024), (2, without_ascii_words, "éeyJ", 2_048)],
)
def test_with_weaker_patterns_the_time_grows_quadratically(
    index: int, weaken: Callable[[re.Pattern[str]], re.Pattern[str]], unit: str, length: int
) -> None:
    """The negative control."""
    assert growth(unit, length) < MAX_GROWTH
    weak = [
        (weaken(pattern) if number == index else pattern, replacement)
        for number, (pattern, replacement) in enumerate(PATTERNS)
    ]
    assert growth(unit, length, weak) > MAX_GROWTH


def test_a_long_text_is_cut_and_its_length_stated() -> None:
    text = "beginning" + " continuation" * 10_000
    kept = redact_text(text)
    assert kept.startswith("beginning continuation ")
    assert kept.endswith(cut_marker(text))
    assert f"{len(text)} characters" in kept
    assert kept != redact_text(text + "x")
    assert len(kept) < 17 * 1024
    assert redact_text(text, max_length=sys.maxsize) == text


@pytest.mark.parametrize("around", ["sk_live_{}", "postgresql://u:{}@db.example/x"])
def test_a_secret_at_the_cut_is_removed(around: str) -> None:
    text = f"before {around.format(RANDOM)}"
    cut = text.index(RANDOM) + 7
    assert redact_text(text, max_length=cut) == "before" + cut_marker(text)
    assert redact_text("x" * 100, max_length=cut) == cut_marker("x" * 100)
    assert RANDOM[:7] in redact_text(text[:cut])  # the negative control: cut inside the secret


# --- events --------------------------------------------------------------------------------------------------------


class LeakingRepr:
    def __repr__(self) -> str:
        return f"LeakingRepr(token='{RANDOM}')"


EVENTS: dict[str, dict[str, Any]] = {
    "by its name": {"refresh_token": RANDOM},
    "by its name, short": {"password": "hunter2-hunter2"},
    "by its name, in bytes": {"client_secret": RANDOM.encode()},
    "by its name, inside": {"headers": {"Authorization": RANDOM}},
    "by its name, in a list": {"responses": [{"access_token": [RANDOM]}]},
    "an ambiguous name": {"code": RANDOM},
    "by its format": {"message": f"got {BY_SHAPE['Stripe']}"},
    "in the event itself": {"event": f"token={RANDOM}"},
    "in a name": {f"token={RANDOM}": 1},
    "in bytes": {"body": f'{{"access_token": "{RANDOM}"}}'.encode()},
    "in a repr": {"thing": LeakingRepr()},
    "in an error": {"error": ValueError(f"access_token={RANDOM}")},
    "in a set": {"things": {f"sk_live_{RANDOM}"}},
}
SECRETS = (RANDOM, "hunter2-hunter2")


def logged(event: dict[str, Any], *processors: structlog.typing.Processor) -> str:
    """The line that a logger with these processors writes."""
    lines: list[str] = []

    class Lines:
        def info(self, line: str) -> None:
            lines.append(line)

    chain: Sequence[structlog.typing.Processor] = [*processors, structlog.processors.JSONRenderer()]
    structlog.wrap_logger(Lines(), processors=chain).info(**{"event": "happened", **event})
    return lines[0]


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_is_redacted(event: dict[str, Any]) -> None:
    line = logged(event, redact)
    assert not any(secret in line for secret in SECRETS)
    assert REDACTED in line


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_without_redaction_the_secret_appears(event: dict[str, Any]) -> None:
    assert any(secret in logged(event) for secret in SECRETS)


def test_times_are_logged_in_iso_format() -> None:
    event = redact(
        None, "info", {"expire_time": datetime(2026, 11, 23, 6, 50, tzinfo=UTC), "ends": [date(2026, 12, 1)]}
    )
    assert event == {"expire_time": "2026-11-23T06:50:00+00:00", "ends": ["2026-12-01"]}


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T22:54:14.000001Z",
        "2026-11-22T22:54:14+00:00",
        "2026-11-22T22:54:14.000001Z=secret",
        "https://accounts.example.com",
        "http://127.0.0.1:8080",
        "https://glpat-abcdefghij0123456789.example",
        "https://user:password-1@accounts.example.com",
        "https://accounts.example.com/token=abcdef",
    ],
)
def test_texts_with_a_shorter_way_are_redacted_as_others(text: str) -> None:
    assert redact(None, "info", {"of": text, "again": text}) == {"of": redact_text(text), "again": redact_text(text)}


def test_an_event_without_secrets_is_unchanged() -> None:
    event = {"integration_id": 42, "ms": 1.5, "ok": True, "none": None, "scopes": ["read"], "state": "taken"}
    assert json.loads(logged(event, redact)) == {"event": "happened", **event}


# --- exceptions ----------------------------------------------------------------------------------------------------


def raised(text: str) -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


GIVEN: dict[str, Callable[[ValueError], Any]] = {
    "an error": lambda error: error,
    "a triple": lambda error: (type(error), error, error.__traceback__),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
def test_an_exception_is_logged_as_type_and_stack(give: Callable[[ValueError], Any]) -> None:
    error = raised("invalid input-text")
    line = logged({"exc_info": give(error)}, strip_exception_text, redact)
    assert "input-text" not in line
    assert json.loads(line)["kind"] == "ValueError"
    assert "test_redaction.py" in json.loads(line)["stack"]
    assert "input-text" in logged({"exc_info": give(error)})


def test_exc_info_true_means_the_current_exception() -> None:
    try:
        raise ValueError(f"invalid {RANDOM}")
    except ValueError:
        line = logged({"exc_info": True}, strip_exception_text)
    assert json.loads(line)["kind"] == "ValueError"
    assert RANDOM not in line
    assert json.loads(logged({"exc_info": True}, strip_exception_text)) == {"event": "happened"}


# --- configured logging --------------------------------------------------------------------------------------------


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored_logging")
def test_our_logs_and_those_of_libraries_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG")
    ours, theirs = structlog.get_logger("integration_server"), logging.getLogger("some.library")
    ours.info("ours", refresh_token=RANDOM)
    theirs.warning("theirs, access_token=%s", RANDOM)
    theirs.warning("theirs, %s", {"client_secret": RANDOM})
    try:
        raise ValueError(f"invalid {RANDOM}")
    except ValueError:
        ours.exception("ours")
        theirs.exception("theirs")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 5
    assert RANDOM not in json.dumps(lines)
    assert [line.get("kind") for line in lines] == [None, None, None, "ValueError", "ValueError"]
    assert all(line["timestamp"] for line in lines)
    assert not any(name.startswith("_") for line in lines for name in line)
