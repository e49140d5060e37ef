"""What the processes of `serve` get, and how `serve` ends without the library of the command line."""

import subprocess
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


_IMPORT_AT_A_START = """
import sys
from integration_server.cli import serving
print(*sys.modules)
from integration_server.settings import Settings
from integration_server.wiring.auth import import_for_workers
settings = {"jwt_issuer": "https://id.example", "jwt_audience": "integrations", "jwt_jwks": "https://id.example/keys"}
files = {"policy_file": "policy.toml", "tls_cert_file": "server.pem"}
import_for_workers(Settings.model_construct(**settings, **files))
print(*sys.modules)
"""


@pytest.mark.slow
def test_a_start_imports_what_verifies_callers_only_if_the_settings_need_it() -> None:
    command = [sys.executable, "-c", _IMPORT_AT_A_START]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    at_first, for_workers = (set(line.split()) for line in ran.stdout.splitlines())
    needed_by_some = {
        *("cryptography.x509", "joserfc", "integration_server.rpc.jwt_verifier", "integration_server.rpc.policy"),
        *("alembic", "botocore", "uvicorn", "integration_server.storage.openbao"),
        *("integration_server.providers.declaration_mistakes", "integration_server.sandbox"),
    }
    assert at_first & needed_by_some == set()
    assert for_workers & needed_by_some == {
        *("cryptography.x509", "joserfc", "integration_server.rpc.jwt_verifier", "integration_server.rpc.policy"),
    }
