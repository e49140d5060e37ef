"""The suite passes for a provider of another package and for one in a TOML file.

Both are the examples of docs/adding-a-provider.md. Nothing in this repository is changed for them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each test runs pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")


def extract_code_block(language: str, start: str) -> str:
    """The code block of the page with this language and start."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = [text for name, text in fenced if name == language and text.startswith(start)]
    return str(block)


def install(site: Path) -> None:
    """Write the files that pip installs for a package with the page's Python file."""
    site.mkdir()
    (site / "my_service.py").write_text(extract_code_block("python", '"""My Service.'))
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[integration_server.providers]\nmy_service = my_service:register\n")


def run_suite(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the suite with the command on the page."""
    paths = [str(tmp_path / "site"), str(ROOT), str(ROOT / "generated")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PROVIDERS_DIR": str(tmp_path / "providers")}
    suite = str(ROOT / "tests" / "conformance" / "test_conformance.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--profiles", str(tmp_path / "profiles")]
    return subprocess.run(
        [*command, *more, suite], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def external_providers(tmp_path: Path) -> Path:
    """A directory with both providers and their profiles."""
    install(tmp_path / "site")
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "acme.toml").write_text(extract_code_block("toml", 'integration_type = "acme"\n'))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "acme.toml").write_text(extract_code_block("toml", "# What acme.example documents"))
    (tmp_path / "profiles" / "my_service.toml").write_text(
        extract_code_block("toml", "# What myservice.example documents")
    )
    return tmp_path


def test_both_providers_pass(external_providers: Path) -> None:
    run = run_suite(external_providers)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 30


def test_negative_control_a_provider_that_contradicts_its_profile_fails(external_providers: Path) -> None:
    profile = external_providers / "profiles" / "acme.toml"
    profile.write_text(profile.read_text().replace('client = "basic"', 'client = "post"'))
    run = run_suite(external_providers, "-k", "test_connects", "--tb=no")
    assert run.returncode == 1
    assert "test_connects[acme]" in run.stdout
    assert "test_connects[my_service]" not in run.stdout


PUBLIC_PROVIDER = """\
integration_type = "public"
auth_method = "oauth2"
authorize_url = "https://public.example/authorize"
token_url = "https://public.example/token"
token_auth = "none"
"""
PUBLIC_PROFILE = """\
integration_type = "public"
[authorize]
url = "https://public.example/authorize"
has_scopes = false
pkce = "required"
[token]
url = "https://public.example/token"
client = "none"
response = { access_token = "$access_token", expires_in = "$expires_in", refresh_token = "$refresh_token" }
"""


API_KEY_PROVIDER = """\
integration_type = "keyed"
auth_method = "api_key"
verify_url = "https://keyed.example/me"
api_key_query_param = "key"
"""
API_KEY_PROFILE = """\
integration_type = "keyed"
[verify]
url = "https://keyed.example/me"
response = {}
[key]
api_key = "k&1"
query = { key = "$api_key" }
"""


@pytest.mark.parametrize(
    ("declaration", "profile_text"),
    [(PUBLIC_PROVIDER, PUBLIC_PROFILE), (API_KEY_PROVIDER, API_KEY_PROFILE)],
    ids=["public", "keyed"],
)
def test_a_public_client_and_a_key_in_the_query_pass(tmp_path: Path, declaration: str, profile_text: str) -> None:
    write_provider(tmp_path, declaration, profile_text)
    run = run_suite(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_provider_on_loopback_passes_in_dev_mode_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_loopback = ("https://public.example", "http://127.0.0.1:8090")
    write_provider(tmp_path, PUBLIC_PROVIDER.replace(*to_loopback), PUBLIC_PROFILE.replace(*to_loopback))
    monkeypatch.delenv("DEV_MODE", raising=False)
    refused = run_suite(tmp_path, "-k", "test_connects")
    assert "plain http is for loopback in dev mode only" in refused.stdout + refused.stderr
    monkeypatch.setenv("DEV_MODE", "1")
    run = run_suite(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


def write_provider(directory: Path, declaration: str, profile_text: str) -> None:
    """Write a provider and its profile."""
    for kind, content in (("providers", declaration), ("profiles", profile_text)):
        (directory / kind).mkdir()
        (directory / kind / "one.toml").write_text(content)
