"""What the processes of `serve` get, and how `serve` ends without the library of the command line."""

import sys
from collections.abc import Callable

import pytest

from integration_server.__main__ import _hidden
from integration_server.cli.serving import program_environment
from integration_server.command_errors import CommandFailed, end_with

ENVIRONMENT = {
    "PATH": "/bin",
    "LC_ALL": "C",
    "ENCRYPTION_KEY": "secret",
    "ACME_CLIENT_SECRET": "secret",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=x",
    "SSL_CERT_FILE": "ca.pem",
}


def test_a_process_gets_no_setting() -> None:
    assert program_environment(ENVIRONMENT) == {"PATH": "/bin", "LC_ALL": "C"}


def test_the_headers_for_the_collector_reach_a_process_that_exports_traces() -> None:
    environment = program_environment(ENVIRONMENT, exports_traces=True)
    assert environment.keys() == {"PATH", "LC_ALL", "OTEL_EXPORTER_OTLP_HEADERS", "SSL_CERT_FILE"}


def _fail() -> None:
    raise CommandFailed("no", exit_code=3)


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("command", "code"), [(lambda: None, None), (_fail, 3), (_interrupt, 130)])
def test_each_end_of_a_command_has_its_exit_code(command: Callable[[], object], code: int | None) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(command)
    assert ended.value.code == code


def test_a_library_is_hidden_only_for_a_while_and_only_if_it_is_not_imported() -> None:
    loaded = sys.modules["pytest"]
    sys.modules.pop("antigravity", None)
    with _hidden(["antigravity", "pytest"]):
        assert sys.modules["pytest"] is loaded
        with pytest.raises(ModuleNotFoundError):
            import antigravity  # noqa: F401
    assert sys.modules["pytest"] is loaded
    assert "antigravity" not in sys.modules
