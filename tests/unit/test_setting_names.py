"""Names that are no setting are reported, with the setting that may be meant."""

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from integration_server.cli.shared import command, load_settings, report_errors
from integration_server.command_errors import CommandFailed
from integration_server.hot_reload import InvalidFile
from integration_server.storage.schema import SchemaError
from integration_server.wiring.setting_names import misspelled_names, unknown_names, warn_of_unknown_names


class GoogleCalendar:
    """A provider's names."""

    integration_type = "google_calendar"
    setting_names = ("GOOGLE_CALENDAR_CLIENT_ID", "GOOGLE_CALENDAR_CLIENT_SECRET")


PROVIDERS = [GoogleCalendar()]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ENCRYPTON_KEY", "ENCRYPTION_KEY"),
        ("ENCRYPTION_KEY_RETIRED", "ENCRYPTION_KEYS_RETIRED"),
        ("encryption_key", "ENCRYPTION_KEY"),
        ("DATABASEURL", "DATABASE_URL"),
        ("GOOGLE_CALENDER_CLIENT_ID", "GOOGLE_CALENDAR_CLIENT_ID"),
        ("ALLOWED_REDIRECT_URLS", "ALLOWED_REDIRECT_URIS"),
        ("COMPOSE_PROJECT", None),
    ],
)
def test_a_name_in_the_file_that_is_no_setting(name: str, meant: str | None, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{name}=secret-value\nLOG_LEVEL=INFO\nGOOGLE_CALENDAR_CLIENT_ID=x\n")
    (unknown,) = unknown_names(tmp_path, PROVIDERS)
    assert (unknown.name, unknown.source, unknown.meant) == (name, ".env", meant)
    assert "secret-value" not in str(unknown)


@pytest.mark.parametrize(
    ("name", "is_reported"),
    [("ENCRYPTON_KEY", True), ("LOGLEVEL", True), ("EDITOR", False), ("GOOGLE_APPLICATION_CREDENTIALS", False)],
)
def test_a_name_in_the_environment_counts_only_if_it_resembles_a_setting(
    name: str, is_reported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "secret-value")
    assert (name in {unknown.name for unknown in unknown_names(tmp_path, PROVIDERS)}) is is_reported


@pytest.mark.parametrize("becomes_empty_pipe", [True, False])
def test_a_file_that_is_no_longer_as_it_was_fails_no_start(
    becomes_empty_pipe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGLEVEL", "INFO")
    if becomes_empty_pipe:  # whoever writes to it has written once
        os.mkfifo(tmp_path / ".env")
    else:
        (tmp_path / ".env").write_text("no assignment\n")
    with capture_logs() as logs:
        warn_of_unknown_names(PROVIDERS)
    assert [entry["name"] for entry in logs if entry["source"] == "the environment"] == ["LOGLEVEL"]


@pytest.mark.parametrize("becomes_empty_pipe", [True, False])
def test_a_file_that_is_no_longer_as_it_was_hides_no_error(
    becomes_empty_pipe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def start() -> None:
        if becomes_empty_pipe:
            os.mkfifo(tmp_path / ".env")
        else:
            (tmp_path / ".env").write_text("no assignment\n")
        raise InvalidFile("policy.toml: is not TOML")

    with pytest.raises(CommandFailed) as caught:
        report_errors(start)()
    assert caught.value.problems[0] == "policy.toml: is not TOML"


def test_the_start_logs_names_and_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DATABSE_URL=postgresql://ada:secret-value@db/x\n")
    with capture_logs() as logs:
        warn_of_unknown_names(PROVIDERS)
    assert logs[0] == {
        "event": "unknown_setting",
        "name": "DATABSE_URL",
        "source": ".env",
        "did_you_mean": "DATABASE_URL",
        "log_level": "warning",
    }
    assert "secret-value" not in str(logs)


def test_a_name_of_a_type_that_only_its_code_knows_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GOOGLE_CALENDAR_MOCK_SERVER_ADDRESS=x\nGOOGLE_CALENDAR_CLIENT_I=x\n")
    assert [unknown.name for unknown in unknown_names(tmp_path, PROVIDERS)] == ["GOOGLE_CALENDAR_CLIENT_I"]


def test_without_a_file_nothing_is_reported_of_it(tmp_path: Path) -> None:
    assert not [unknown for unknown in unknown_names(tmp_path, PROVIDERS) if unknown.source == ".env"]


def test_a_slip_is_reported_however_many_other_names_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("".join(f"ACME{number}_CLIENT_ID=x\n" for number in range(30)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENCRYPTON_KEY", "secret-value")
    assert [name.split()[0] for name in misspelled_names()] == ["ENCRYPTON_KEY"]
    assert len(unknown_names(tmp_path, ())) == 20


def test_a_file_that_cannot_be_read_is_the_only_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").symlink_to("/proc/self/mem")  # can be opened, but not read, also by root
    with pytest.raises(CommandFailed) as failed:
        command(_start_without_its_key)()
    (problem,) = failed.value.problems
    assert "(Input/output error); repair or remove it" in problem


async def _start_without_its_key() -> None:
    await load_settings()


async def _start_without_a_schema() -> None:
    raise SchemaError("DATABASE_URL: the database has no schema yet")


@pytest.mark.parametrize("start", [_start_without_its_key, _start_without_a_schema])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ENCRYPTON_KEY", "ENCRYPTION_KEY"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("PROVIDER_DIR", "PROVIDERS_DIR"),
        ("EDITOR", None),  # negative control
    ],
)
def test_a_start_that_fails_names_what_may_be_misspelled(
    start: Callable[[], Coroutine[Any, Any, None]],
    name: str,
    meant: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENCRYPTION_KEY", raising=False)
    monkeypatch.setenv(name, "secret-value")
    with pytest.raises(CommandFailed) as failure:
        command(start)()
    failure.value.report(as_json=False)
    message = capsys.readouterr().err
    assert (name in message) is (meant is not None)
    assert f"did you mean {meant}?" in message or meant is None
    assert "secret-value" not in message
