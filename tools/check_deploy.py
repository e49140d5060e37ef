"""Checks what containers and clusters are made from: the Dockerfile, and the Helm chart with each of its values files.

    python -m tools.check_deploy

hadolint checks the Dockerfile. Helm, as a library, lints and renders the chart; the manifests are validated against the
schemas of the oldest and the newest Kubernetes, and the server's own code validates the settings that they contain.
"""

import base64
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from integration_server.settings import Settings, SettingsError

PROJECT = Path(__file__).resolve().parent.parent
CHART = PROJECT / "deploy" / "helm" / "integration-server"
KUBERNETES = ("1.30", "1.37")
NOT_VALIDATED = {"cert-manager.io/v1", "external-secrets.io/v1", "monitoring.coreos.com/v1"}
"""API versions whose schemas come with operators, and not with Kubernetes."""

_WARNING = 2  # Helm's severities: 1 information, 2 warning, 3 error
_SECRET = {
    "DATABASE_URL": "postgresql://integrations:password@db.internal:5432/integrations",
    "ENCRYPTION_KEY": base64.b64encode(os.urandom(32)).decode(),
}
_MISSING = "{name} has no package for this platform; its checks are left out: {checks}"


def check_dockerfile(path: Path = PROJECT / "Dockerfile") -> Iterator[str]:
    """The problems that hadolint finds."""
    program = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(  # noqa: S603 - the program is in the project's own environment
        [program, "--no-color", path.name], cwd=path.parent, capture_output=True, text=True, check=False
    )
    yield from (result.stdout + result.stderr).splitlines()


def values_files(chart: Path = CHART) -> Mapping[str, Mapping[str, Any]]:
    """The values files beside the chart, by name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(chart.parent.glob("values-*.yaml"))}


def check_chart(values: Mapping[str, Any], chart: Path = CHART) -> Iterator[str]:
    """The problems of a chart with these values."""
    import helm_python  # noqa: PLC0415 - not every platform has it

    report = helm_python.lint(chart, dict(values), strict=True)
    found = [message for message in report["messages"] if message["severity"] >= _WARNING]
    yield from (f"helm lint: {message['path']}: {message['error']}" for message in found)
    yield from (f"helm lint: {error}" for error in report["errors"] if not found)
    if report["errors"]:
        return
    try:
        manifests = render(values, chart)
    except helm_python.HelmError as error:  # `fail` in a template, which the linter ignores
        yield f"helm template: {error}"
        return
    for manifest in manifests:
        yield from _validate(manifest)
    yield from check_settings(manifests)


def render(values: Mapping[str, Any], chart: Path = CHART) -> Sequence[Mapping[str, Any]]:
    """The objects that `helm template` prints. Raises `HelmError`."""
    import helm_python  # noqa: PLC0415 - not every platform has it

    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(loaded.merge_values(dict(values)))
        rendered = loaded.render(dict(values), name="example", namespace="integrations")
    texts = (text for name, text in sorted(rendered.items()) if name.endswith(".yaml"))
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def _validate(manifest: Mapping[str, Any]) -> Iterator[str]:
    import kubernetes_validate  # noqa: PLC0415 - is installed with it

    if manifest["apiVersion"] in NOT_VALIDATED:
        return
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{name}, Kubernetes {version}: it has no {manifest['apiVersion']} {manifest['kind']}"


# --- the settings of the containers ----------------------------------------------------------------------------------


def check_settings(manifests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether the server starts with the environment and the files of its container."""
    (pod,) = (item["spec"]["template"]["spec"] for item in manifests if item["kind"] == "StatefulSet")
    texts = {item["metadata"]["name"]: item["data"] for item in manifests if item["kind"] == "ConfigMap"}
    (container,) = pod["containers"]
    # A variable from a Secret of its own has the value that the server's Secret would give it.
    variables = {entry["name"]: entry.get("value", _SECRET.get(entry["name"], "")) for entry in container["env"]}
    if len(variables) != len(container["env"]):
        yield "a variable of the container is set twice"
    known = {field.alias for field in Settings.model_fields.values()}
    yield from (f"{name} is not a setting" for name in variables.keys() - known)
    with TemporaryDirectory() as folder:
        mounted = _mount(pod, container, texts, Path(folder))
        environment = {name: _in_folder(value, mounted) for name, value in {**_SECRET, **variables}.items()}
        try:
            Settings.from_environment(environment)
        except SettingsError as error:
            yield from error.problems
    for files in texts.values():
        for file, text in files.items():
            try:
                tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                yield f"{file}: {error}"


def _mount(
    pod: Mapping[str, Any], container: Mapping[str, Any], texts: Mapping[str, Mapping[str, str]], folder: Path
) -> Mapping[str, Path]:
    """Write what the container's volumes contain into the folder; the folders by the paths in the container."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {}
    for number, mount in enumerate(container["volumeMounts"]):
        volume = volumes.get(mount["name"], {})
        mounted[mount["mountPath"]] = target = folder / str(number)
        target.mkdir()
        files = texts.get(volume.get("configMap", {}).get("name", ""))
        if volume.get("name") in {"tls", "client-ca"}:
            files = dict.fromkeys(("tls.crt", "tls.key", "ca.crt"), "")
        elif files is None:  # of others: it has the files that the settings name
            named = [entry.get("value", "") for entry in container["env"]]
            files = {Path(path).name: "" for path in named if path.startswith(f"{mount['mountPath']}/")}
        for name, text in files.items():
            (target / name).write_text(text)
    return mounted


def _in_folder(value: str, mounted: Mapping[str, Path]) -> str:
    for path, folder in mounted.items():
        if value == path or value.startswith(f"{path}/"):
            return str(folder) + value.removeprefix(path)
    return value


def main() -> int:
    """Check everything, and print what is found; the exit code."""
    problems: list[str] = []
    if Path(sys.executable).with_name("hadolint").exists():
        problems += check_dockerfile()
        print("Dockerfile: hadolint")
    else:
        print(_MISSING.format(name="hadolint", checks="Dockerfile"))
    if find_spec("helm_python"):
        for name, values in values_files().items():
            problems += [f"{name}: {problem}" for problem in check_chart(values)]
            print(
                f"{CHART.relative_to(PROJECT)}, {name}: helm lint, helm template, Kubernetes {' and '.join(KUBERNETES)}"
            )
    else:
        print(_MISSING.format(name="helm-python-sdk", checks="the Helm chart"))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
