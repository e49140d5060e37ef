"""The second net under the logs: what looks like a secret goes, what does not stays, and without it both are there."""

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

from integration_server import redaction
from integration_server.logs import configure_logging
from integration_server.redaction import REDACTED, redact, redact_text, strip_exception_text

RANDOM = "Zx9" + secrets.token_urlsafe(24).replace("-", "a").replace("_", "b")
HEX = os.urandom(16).hex()


def sealed() -> str:
    """The form of a state: format 1, and bytes that look random."""
    return base64.urlsafe_b64encode(b"\x01" + os.urandom(140)).decode().rstrip("=")


def jwt() -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"RS256"}').decode().rstrip("=")
    return f"{header}.{secrets.token_urlsafe(40)}.{secrets.token_urlsafe(40)}"


BY_SHAPE = {
    "sealed": sealed(),
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
    'File "/srv/integration_server/service/refreshing.py", line 12, in refresh\n    await provider.refresh()\n',
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
def test_a_secret_is_known_by_its_shape(kind: str, around: str) -> None:
    assert BY_SHAPE[kind] not in redact_text(around.format(BY_SHAPE[kind]))
    assert REDACTED in redact_text(around.format(BY_SHAPE[kind]))


@pytest.mark.parametrize("text", BY_NAME)
def test_a_secret_is_known_by_its_name(text: str) -> None:
    assert RANDOM not in redact_text(text.format(RANDOM))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


# --- what it costs -------------------------------------------------------------------------------------------------


def growth(unit: str, length: int = 1_024) -> float:
    """How many times as long eight times the text takes: 8 where it is read once, 64 where once for each word."""

    def seconds(text: str) -> float:
        begin = time.process_time()
        redact_text(text)
        return time.process_time() - begin

    text = unit * (length // len(unit))
    return min(seconds(text * 8) for _ in range(3)) / min(seconds(text) for _ in range(25))


MOST = 24


@pytest.mark.parametrize(
    "unit",
    [
        "a_", "token", "token=", "token ", "eyJ", "éeyJ", "Bearer ", "bearer a", "state=a", "key=", "key=[", "%41key=",
        "://a:", "://a:@", "@", "pwd=/", "SG.aaaaaaaa", "cookie ", "-----BEGIN A", "-----BEGIN PRIVATE KEY-----", '\\"',
    ],
)  # fmt: skip
def test_a_text_is_read_once(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_MAX_LENGTH", sys.maxsize)
    assert growth(unit) < MOST


def without_bounds(pattern: re.Pattern[str]) -> re.Pattern[str]:
    assert "{0,31}?" in pattern.pattern
    return re.compile(pattern.pattern.replace("{0,31}?", "*"), pattern.flags)


def with_words_in_words(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern.pattern, pattern.flags & ~re.ASCII)


@pytest.mark.parametrize(
    ("name", "undefended", "unit", "length"),
    [("_NAMED_AMBIGUOUSLY", without_bounds, "key=", 1_024), ("_SHAPES", with_words_in_words, "éeyJ", 2_048)],
)
def test_without_its_defence_a_text_is_read_once_for_each_word(
    name: str,
    undefended: Callable[[re.Pattern[str]], re.Pattern[str]],
    unit: str,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twins."""
    monkeypatch.setattr(redaction, "_MAX_LENGTH", sys.maxsize)
    assert growth(unit, length) < MOST
    monkeypatch.setattr(redaction, name, undefended(getattr(redaction, name)))
    assert growth(unit, length) > MOST


def test_of_a_long_text_the_beginning_stays_and_how_long_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "so it begins, " + "and goes on " * 10_000
    kept = redact_text(text)
    assert kept.startswith("so it begins, and goes on ")
    assert kept.endswith(f"[cut: {len(text)} characters]")
    assert len(kept) < 17 * 1024
    monkeypatch.setattr(redaction, "_MAX_LENGTH", sys.maxsize)
    assert redact_text(text) == text


@pytest.mark.parametrize("around", ["sk_live_{}", "postgresql://u:{}@db.example/x"])
def test_no_half_of_a_secret_is_left_where_a_text_is_cut(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"before {around.format(RANDOM)}"
    cut = text.index(RANDOM) + 7
    monkeypatch.setattr(redaction, "_MAX_LENGTH", cut)
    assert redact_text(text) == f"before [cut: {len(text)} characters]"
    assert redact_text("x" * 100) == "[cut: 100 characters]"
    assert RANDOM[:7] in redact_text(text[:cut])  # the twin: cut where the limit happens to be


# --- events --------------------------------------------------------------------------------------------------------


class Careless:
    def __repr__(self) -> str:
        return f"Careless(token='{RANDOM}')"


EVENTS: dict[str, dict[str, Any]] = {
    "by its name": {"refresh_token": RANDOM},
    "by its name, short": {"password": "hunter2-hunter2"},
    "by its name, in bytes": {"client_secret": RANDOM.encode()},
    "by its name, inside": {"headers": {"Authorization": RANDOM}},
    "by its name, in a list": {"answers": [{"access_token": [RANDOM]}]},
    "an ambiguous name": {"code": RANDOM},
    "by its shape": {"message": f"got {BY_SHAPE['Stripe']}"},
    "in the event itself": {"event": f"token={RANDOM}"},
    "in a name": {f"token={RANDOM}": 1},
    "in bytes": {"body": f'{{"access_token": "{RANDOM}"}}'.encode()},
    "in a repr": {"thing": Careless()},
    "in an error": {"error": ValueError(f"access_token={RANDOM}")},
    "in a set": {"things": {f"sk_live_{RANDOM}"}},
}
SECRETS = (RANDOM, "hunter2-hunter2")


def logged(event: dict[str, Any], *processors: structlog.typing.Processor) -> str:
    """The line that a logger with these processors before its renderer writes."""
    lines: list[str] = []

    class Lines:
        def info(self, line: str) -> None:
            lines.append(line)

    chain: Sequence[structlog.typing.Processor] = [*processors, structlog.processors.JSONRenderer()]
    structlog.wrap_logger(Lines(), processors=chain).info(**{"event": "happened", **event})
    return lines[0]


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_no_secret_is_left_in_an_event(event: dict[str, Any]) -> None:
    line = logged(event, redact)
    assert not any(secret in line for secret in SECRETS)
    assert REDACTED in line


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_without_the_net_the_same_event_shows_it(event: dict[str, Any]) -> None:
    assert any(secret in logged(event) for secret in SECRETS)


def test_times_are_told_as_a_person_writes_them() -> None:
    event = redact(
        None, "info", {"expire_time": datetime(2026, 11, 23, 6, 50, tzinfo=UTC), "ends": [date(2026, 12, 1)]}
    )
    assert event == {"expire_time": "2026-11-23T06:50:00+00:00", "ends": ["2026-12-01"]}


def test_an_event_without_secrets_stays_as_it_is() -> None:
    event = {"integration_id": 42, "ms": 1.5, "ok": True, "none": None, "scopes": ["read"], "state": "taken"}
    assert json.loads(logged(event, redact)) == {"event": "happened", **event}


# --- exceptions ----------------------------------------------------------------------------------------------------


def failed(text: str) -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


GIVEN: dict[str, Callable[[ValueError], Any]] = {
    "an error": lambda error: error,
    "a triple": lambda error: (type(error), error, error.__traceback__),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
def test_of_an_exception_kind_and_place_are_logged(give: Callable[[ValueError], Any]) -> None:
    error = failed("choked on what-it-got")
    line = logged({"exc_info": give(error)}, strip_exception_text, redact)
    assert "what-it-got" not in line
    assert json.loads(line)["kind"] == "ValueError"
    assert "test_redaction.py" in json.loads(line)["stack"]
    assert "what-it-got" in logged({"exc_info": give(error)})


def test_the_exception_at_hand_is_meant_by_true() -> None:
    try:
        raise ValueError(f"choked on {RANDOM}")
    except ValueError:
        line = logged({"exc_info": True}, strip_exception_text)
    assert json.loads(line)["kind"] == "ValueError"
    assert RANDOM not in line
    assert json.loads(logged({"exc_info": True}, strip_exception_text)) == {"event": "happened"}


# --- as the process logs -------------------------------------------------------------------------------------------


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_as_it_was")
def test_the_net_hangs_under_our_logs_and_those_of_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG")
    ours, theirs = structlog.get_logger("integration_server"), logging.getLogger("some.library")
    ours.info("ours", refresh_token=RANDOM)
    theirs.warning("theirs, access_token=%s", RANDOM)
    theirs.warning("theirs, %s", {"client_secret": RANDOM})
    try:
        raise ValueError(f"choked on {RANDOM}")
    except ValueError:
        ours.exception("ours")
        theirs.exception("theirs")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 5
    assert RANDOM not in json.dumps(lines)
    assert [line.get("kind") for line in lines] == [None, None, None, "ValueError", "ValueError"]
    assert all(line["timestamp"] for line in lines)
    assert not any(name.startswith("_") for line in lines for name in line)
