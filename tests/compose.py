"""Runs the services of `compose.yaml` as processes, without containers.

What Docker provides is replaced: a service has a loopback address of its own, where its name and "any address" lead;
volumes, secrets and mounted files are in a temporary folder; PostgreSQL and Envoy come from packages, Prometheus from
the machine. For root on Linux, `confined.sh` makes the root file system of services read-only and takes their rights.
Commands, environment, files, health checks, and the order of start are those of the file.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.envoy import PROJECT, adapted, find_envoy
from tests.postgres import PostgresServer

COMPOSE = PROJECT / "compose.yaml"
DOCKERFILE = PROJECT / "Dockerfile"
_DEADLINE = 120.0  # seconds for a service to become healthy or to complete: many times what it takes
_POSTGRES_PORT = 5432
_CONFINED = Path(__file__).with_name("confined.sh")


def read_project(path: Path = COMPOSE) -> Mapping[str, Any]:
    """The file as Compose reads it: anchors and merged keys are resolved."""
    project: Mapping[str, Any] = yaml.safe_load(path.read_text())
    return project


def image_environment(dockerfile: Path = DOCKERFILE) -> Mapping[str, str]:
    """The variables of the last stage of the Dockerfile."""
    stage = dockerfile.read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    return dict(re.findall(r"([A-Z_]+)=(\S+)", "\n".join(re.findall(r"^ENV .*$", stage, re.MULTILINE))))


def image_user(dockerfile: Path = DOCKERFILE) -> str:
    """The user of the image."""
    *_, user = re.findall(r"^USER (\d+):\d+$", dockerfile.read_text(), re.MULTILINE)
    return str(user)


def confined(user: str, folders: Sequence[Path]) -> Sequence[str]:
    """What runs the command after it without capabilities, where only these folders can be written."""
    return ["unshare", "--mount", str(_CONFINED), user, *map(str, folders), "--"]


def can_confine() -> bool:
    """Whether this machine can confine a process."""
    if os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    return subprocess.run([*confined("0", []), "true"], capture_output=True, check=False).returncode == 0


def start_order(services: Mapping[str, Any]) -> Sequence[str]:
    """The services, each after those that it depends on. Raises `ValueError` for a circle or an unknown service."""
    order: list[str] = []

    def visit(name: str, path: Sequence[str]) -> None:
        if name in path or name not in services:
            raise ValueError(f"{' → '.join([*path, name])}: a circle, or no such service")
        for dependency in services[name].get("depends_on", {}):
            visit(dependency, [*path, name])
        if name not in order:
            order.append(name)

    for name in services:
        visit(name, [])
    return order


@dataclass(frozen=True, slots=True)
class Replacements:
    """What names and paths of the containers are on this machine."""

    addresses: Mapping[str, str]  # by service
    aliases: Mapping[str, Sequence[str]]  # services by a further name in the network
    subnet: str
    folder: Path
    temporary: Path  # with a short path, because sockets are in it

    def mounts(self, name: str, service: Mapping[str, Any], project: Mapping[str, Any]) -> Mapping[str, Path]:
        """What is mounted into a service, by the path in the container."""
        mounted = dict.fromkeys(service.get("tmpfs", ()), self.temporary / name)
        for path in mounted.values():
            path.mkdir(exist_ok=True)
        for volume in service.get("volumes", ()):
            source, path = volume.split(":")[:2]
            if source.startswith("./data/compose/"):
                mounted[path] = self.folder / source.removeprefix("./data/compose/")
            elif source.startswith("./"):
                mounted[path] = self._adapted(name, PROJECT / source)
            else:
                assert source in project["volumes"], f"{name}: {source} is no volume"
                mounted[path] = self.new_folder("volumes", source)
        for secret in service.get("secrets", ()):
            file = project["secrets"][secret]["file"]
            mounted[f"/run/secrets/{secret}"] = self.folder / file.removeprefix("data/compose/")
        return mounted

    def new_folder(self, name: str, path: str) -> Path:
        """A folder for a service."""
        folder = self.folder / name / path.strip("/").replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _adapted(self, name: str, source: Path) -> Path:
        """A copy of a file or folder in which the names of services are addresses."""
        target = self.new_folder(name, "mounted") / source.name
        if source.is_dir():
            target.mkdir(exist_ok=True)
            for file in source.iterdir():
                (target / file.name).write_text(self.text(name, file.read_text()))
        elif source.suffix in {".yaml", ".yml", ".toml"}:
            target.write_text(self.text(name, source.read_text()))
        else:
            shutil.copy(source, target)
        return target

    def text(self, name: str, text: str) -> str:
        """The text in which names of services are their addresses, and "any" and "this" address that of the service."""
        for service, address in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(service)}(?=:\d)", address, text)
        text = text.replace(self.subnet, "127.0.0.0/8")
        return re.sub(r"(?<![\d.])(0\.0\.0\.0|127\.0\.0\.1)(?![\d.])", self.addresses[name], text)

    def value(self, name: str, text: str, mounted: Mapping[str, Path]) -> str:
        """An argument or the value of a variable on this machine."""
        paths = "|".join(re.escape(path) for path in sorted(mounted, key=len, reverse=True))
        if paths:
            text = re.sub(rf"(?<![\w/.-])({paths})(?=/|$)", lambda found: str(mounted[found[0]]), text)
        return self.text(name, text)


@dataclass(slots=True)
class RunningProject:
    """The running services."""

    folder: Path
    addresses: Mapping[str, str]
    is_confined: bool
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def log(self, name: str) -> str:
        """What a service has written."""
        return (self.folder / f"{name}.log").read_text()

    @property
    def url(self) -> str:
        """The published address."""
        return f"http://{self.addresses['envoy']}:8000"


@dataclass(frozen=True, slots=True)
class _Starter:
    project: Mapping[str, Any]
    replacements: Replacements
    running: RunningProject
    postgres: PostgresServer
    overrides: Mapping[str, str]
    stack: AsyncExitStack
    mounted: dict[str, Mapping[str, Path]] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        service = self.project["services"][name]
        for dependency, condition in service.get("depends_on", {}).items():
            await self._wait_for(dependency, condition["condition"])
        self.mounted[name] = mounted = self.replacements.mounts(name, service, self.project)
        if name == "postgres":
            await self._start_postgres(service)
            return
        program = self._program(service)
        if program is None:
            self.running.left_out[name] = f"no {name} on this machine"
            return
        if name == "envoy":
            self._resolve_aliases(mounted)
        arguments = [self.replacements.value(name, argument, mounted) for argument in service["command"]]
        environment = self._environment(name, service, mounted)
        if self.running.is_confined and service.get("read_only"):
            user = image_user() if "build" in service else "0"
            named = [volume.split(":") for volume in service.get("volumes", ())]
            written = [*service.get("tmpfs", ()), *(path for source, path, *_ in named if not source.startswith("."))]
            program = [*confined(user, [mounted[path] for path in written]), *program]
        log = self.stack.enter_context((self.running.folder / f"{name}.log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            *program,
            *arguments,
            cwd=self.replacements.new_folder(name, "workdir"),
            env=environment,
            stdout=log,
            stderr=log,
        )
        self.running.processes[name] = process

    def _program(self, service: Mapping[str, Any]) -> Sequence[str] | None:
        """The entry point of the service's image."""
        if "build" in service:
            return [sys.executable, "-m", "integration_server"]
        is_envoy = service["image"].startswith("envoyproxy/envoy:")
        found = find_envoy() if is_envoy else shutil.which(service["image"].partition(":")[0].rpartition("/")[2])
        return None if found is None else [found]

    def _environment(self, name: str, service: Mapping[str, Any], mounted: Mapping[str, Path]) -> Mapping[str, str]:
        inherited = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        variables: dict[str, str] = {}
        if "build" in service:
            variables = {key: value for key, value in image_environment().items() if key not in {"PATH", "HOME"}}
            inherited["PYTHONPATH"] = os.pathsep.join([str(PROJECT), str(PROJECT / "generated")])
            inherited["TMPDIR"] = str(mounted["/tmp"])  # noqa: S108 - the path in the container
        for file in service.get("env_file", ()):
            text = (self.replacements.folder / file.removeprefix("data/compose/")).read_text()
            variables |= dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE))
        variables |= service.get("environment", {})
        variables = {key: self.replacements.value(name, value, mounted) for key, value in variables.items()}
        if name.startswith("server-"):
            variables |= self.overrides
        return {**inherited, **variables}

    def _resolve_aliases(self, mounted: Mapping[str, Path]) -> None:
        """Name the servers behind an alias one by one, as a DNS response does."""
        path = mounted["/etc/envoy/envoy.yaml"]
        hosts = [self.replacements.addresses[service] for service in self.replacements.aliases["servers"]]
        address = self.replacements.addresses["envoy"]
        config = adapted(
            [f"{host}:50051" for host in hosts],
            [f"{host}:8080" for host in hosts],
            (address, 8000),
            (address, 9901),
            authority=mounted["/etc/envoy/ca.pem"],
        )
        path.write_text(yaml.safe_dump(config))

    async def _start_postgres(self, service: Mapping[str, Any]) -> None:
        """Do what the image does at its first start, and listen on the service's address."""
        variables = service["environment"]
        (secret,) = service["secrets"]
        assert variables["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{secret}"
        password = (self.replacements.folder / secret).read_text()
        user, database = variables["POSTGRES_USER"], variables["POSTGRES_DB"]
        for statement in (
            f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'",
            f"CREATE DATABASE {database} OWNER {user}",
        ):
            await asyncio.to_thread(self.postgres.run, statement)
        await asyncio.to_thread(self.postgres.require_passwords)
        address = self.replacements.addresses["postgres"]
        await self.stack.enter_async_context(_forward(address, _POSTGRES_PORT, self.postgres.socket))

    async def _wait_for(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            process = self.running.processes[name]
            async with asyncio.timeout(_DEADLINE):
                await process.wait()
            if process.returncode != 0:
                raise RuntimeError(f"{name} has failed with {process.returncode}:\n{self.running.log(name)}")
        else:
            assert condition == "service_healthy", condition
            await self.wait_until_healthy(name)

    async def wait_until_healthy(self, name: str) -> None:
        """Wait until the service's own health check succeeds."""
        async with asyncio.timeout(_DEADLINE):
            while not await self.is_healthy(name):
                process = self.running.processes.get(name)
                if process is not None and process.returncode is not None:
                    raise RuntimeError(f"{name} has ended with {process.returncode}:\n{self.running.log(name)}")
                await asyncio.sleep(1)  # a check takes CPU time from what it waits for

    async def is_healthy(self, name: str) -> bool:
        """Whether the service's own health check succeeds."""
        service = self.project["services"][name]
        kind, command, *arguments = service["healthcheck"]["test"]
        assert kind == "CMD", "a shell would be needed"
        programs = {
            "integration-server": [sys.executable, "-m", "integration_server"],
            "pg_isready": [str(self.postgres.process.bin_path / "pg_isready")],
        }
        mounted = self.mounted[name]
        process = await asyncio.create_subprocess_exec(
            *programs[command],
            *(self.replacements.value(name, argument, mounted) for argument in arguments),
            env=self._environment(name, service, mounted),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait() == 0


@asynccontextmanager
async def _forward(host: str, port: int, target: str) -> AsyncIterator[None]:
    """Forward connections to a Unix socket."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(64 * 1024):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, back_writer), copy(back_reader, writer))

    server = await asyncio.start_server(connect, host, port)
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def run_project(
    folder: Path, postgres: PostgresServer, *, without: Sequence[str] = (), **overrides: str
) -> AsyncIterator[tuple[RunningProject, Callable[[str], Awaitable[bool]]]]:
    """Run the services on a new PostgreSQL server, with the files of `tools.compose_secrets` in the folder.

    `overrides` are environment variables of the servers. Yields the project, and whether a service is healthy.
    """
    project = read_project()
    services = {name: service for name, service in project["services"].items() if name not in without}
    network = f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
    addresses = {name: f"{network}.{number}" for number, name in enumerate(project["services"], start=1)}
    aliases: dict[str, list[str]] = {}
    for name, service in project["services"].items():
        for alias in service.get("networks", {}).get("default", {}).get("aliases", ()):
            aliases.setdefault(alias, []).append(name)
    (pool,) = project["networks"]["default"]["ipam"]["config"]
    running = RunningProject(folder, addresses, is_confined=await asyncio.to_thread(can_confine))
    async with AsyncExitStack() as stack:
        temporary = Path(stack.enter_context(TemporaryDirectory(prefix="compose-")))
        replacements = Replacements(addresses, aliases, pool["subnet"], folder, temporary)
        starter = _Starter(project, replacements, running, postgres, overrides, stack)
        stack.push_async_callback(_stop, running)
        for name in start_order(services):
            await starter.start(name)
        yield running, starter.is_healthy


async def _stop(running: RunningProject) -> None:
    """Stop all processes as Docker does, the last one first."""
    for process in reversed(running.processes.values()):
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(60):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
