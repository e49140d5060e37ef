"""The secrets of compose.yaml: complete, kept, and readable for nobody else."""

import re
import stat
from pathlib import Path

from integration_server.settings import Settings
from tests.compose import read_project
from tools import compose_secrets


def read(folder: Path) -> dict[str, bytes]:
    """All files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_writes_all_files_that_compose_names(tmp_path: Path) -> None:
    folder = tmp_path / "compose"
    compose_secrets.write(folder)
    project = read_project()
    named = {secret["file"] for secret in project["secrets"].values()}
    for service in project["services"].values():
        named |= set(service.get("env_file", ()))
        named |= {volume.split(":")[0].removeprefix("./") for volume in service.get("volumes", ())}
    ours = {name.removeprefix("data/compose/") for name in named if name.startswith("data/compose/")}
    assert len(ours) == 7
    assert ours <= set(read(folder))


def test_nobody_else_can_enter_the_folder_and_containers_can_read_what_they_mount(tmp_path: Path) -> None:
    folder = tmp_path / "compose"
    compose_secrets.write(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    mounted = [secret["file"].removeprefix("data/compose/") for secret in read_project()["secrets"].values()]
    assert {modes[name] for name in [*mounted, "ca.pem"]} == {0o444}
    assert {modes[name] for name in ("server.env", "database.env", "ada.jwt")} == {0o600}


def test_what_exists_is_kept(tmp_path: Path) -> None:
    compose_secrets.write(tmp_path)
    (tmp_path / "server.env").write_text("ENCRYPTION_KEY=mine\n")
    before = read(tmp_path)
    compose_secrets.write(tmp_path)
    assert read(tmp_path) == before


def test_each_installation_has_secrets_of_its_own_that_the_server_accepts(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "other"):
        compose_secrets.write(tmp_path / name)
        text = (tmp_path / name / "server.env").read_text() + (tmp_path / name / "database.env").read_text()
        texts.append(dict(re.findall(r"^([A-Z_]+)=(.+)$", text, re.MULTILINE)))
    assert texts[0].keys() == texts[1].keys() >= {"ENCRYPTION_KEY", "DATABASE_URL", "USER_JWT_JWKS"}
    assert all(texts[0][name] != texts[1][name] for name in ("ENCRYPTION_KEY", "DATABASE_URL"))
    for settings in texts:
        key = {name: settings[name] for name in ("ENCRYPTION_KEY", "DATABASE_URL")}
        assert Settings.from_environment(key).encryption_key is not None
