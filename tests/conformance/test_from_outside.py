"""A provider of another package, and one that a TOML file declares, pass the suite as it is.

What they consist of is what docs/adding-a-provider.md shows; nothing of this repository is changed for them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")


def shown(language: str, start: str) -> str:
    """The block of the page that begins so."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = [text for name, text in fenced if name == language and text.startswith(start)]
    return str(block)


def install(site: Path) -> None:
    """What pip makes of a package with the page's provider."""
    site.mkdir()
    (site / "my_service.py").write_text(shown("python", '"""My Service.'))
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[integration_server.providers]\nmy_service = my_service:register\n")


def run_suite(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command that the page gives."""
    paths = [str(tmp_path / "site"), str(ROOT), str(ROOT / "generated")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PROVIDERS_DIR": str(tmp_path / "providers")}
    suite = str(ROOT / "tests" / "conformance" / "test_conformance.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--profiles", str(tmp_path / "profiles")]
    return subprocess.run(
        [*command, *more, suite], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with both providers and their profiles."""
    install(tmp_path / "site")
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "acme.toml").write_text(shown("toml", 'integration_type = "acme"\n'))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "acme.toml").write_text(shown("toml", "# What acme.example documents"))
    (tmp_path / "profiles" / "my_service.toml").write_text(shown("toml", "# What myservice.example documents"))
    return tmp_path


def test_both_pass(outside: Path) -> None:
    run = run_suite(outside)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 30


def test_one_that_does_otherwise_than_its_provider_documents_does_not(outside: Path) -> None:
    profile = outside / "profiles" / "acme.toml"
    profile.write_text(profile.read_text().replace('client = "basic"', 'client = "post"'))
    run = run_suite(outside, "-k", "test_connects", "--tb=no")
    assert run.returncode == 1
    assert "test_connects[acme]" in run.stdout
    assert "test_connects[my_service]" not in run.stdout


PUBLIC = """\
integration_type = "public"
auth_method = "oauth2"
authorize_url = "https://public.example/authorize"
token_url = "https://public.example/token"
token_auth = "none"
"""
ITS_PROFILE = """\
integration_type = "public"
[authorize]
url = "https://public.example/authorize"
has_scopes = false
pkce = "taken"
[token]
url = "https://public.example/token"
client = "none"
answer = { access_token = "$access_token", expires_in = "$expires_in", refresh_token = "$refresh_token" }
"""


def test_a_public_client_with_nothing_to_ask_passes(tmp_path: Path) -> None:
    for folder, content in (("providers", PUBLIC), ("profiles", ITS_PROFILE)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "public.toml").write_text(content)
    run = run_suite(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
