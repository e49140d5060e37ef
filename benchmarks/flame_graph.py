"""Call stacks of a server while it serves `GetCredentials` from its cache and past it, for flame graphs.

The server runs in this process and its clients in another one. A signal of the CPU timer samples the call stack of the
event loop. The time of C code, such as gRPC's and the database driver's, belongs to the Python function that called it.
"""

import asyncio
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import Any

import grpc

from benchmarks.harness import RESULTS
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_environment, seed
from integration_server.bootstrap import running_grpc_server
from integration_server.logs import configure_logging
from integration_server.settings import Settings
from integration_server.storage.schema import migrate
from integration_server.wiring.sidecar import new_sidecar_link
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

KINDS: Mapping[str, Mapping[str, Any]] = {"hit": {}, "miss": {"CREDENTIALS_CACHE_SIZE": "1048576"}}
"""What is sampled, with the settings of its server."""

_INTEGRATIONS = 1000  # more than the smallest cache has room for
_SAMPLE_INTERVAL = 0.001  # seconds of CPU time
_LOOP = "event loop:uvloop and gRPC"  # C code that no Python function of the server has called
_CLIENTS = 8  # concurrent calls
_WARM_UP = 1.0  # seconds
_DEADLINE = 30.0


async def sample_stacks(kind: str, seconds: float) -> Mapping[str, int]:
    """The samples of each call stack, `caller;callee;…`, of a server under load."""
    configure_logging("INFO", terminal=False)  # as of a service; lines for a terminal take a tenth of the time
    running = running_environment(DatabaseKind.POSTGRES, **KINDS[kind])
    async with running as (_directory, provider, environment):
        settings = Settings.from_environment(environment)
        await migrate(settings.database_url)
        expire_times = [utc_now() + timedelta(days=7)] * _INTEGRATIONS
        seeded = await seed(System([], provider, environment), HEALTHY_TYPE, expire_times)
        with new_sidecar_link() as link:
            async with running_grpc_server(settings, environment, link) as server:
                context = multiprocessing.get_context("spawn")
                begun = context.Event()
                client = context.Process(target=_load, args=(server.address, seeded, seconds + 2 * _WARM_UP, begun))
                client.start()
                try:
                    await asyncio.to_thread(begun.wait, _DEADLINE)
                    await asyncio.sleep(_WARM_UP)
                    return await _sampled(seconds)
                finally:
                    await asyncio.to_thread(client.join)


async def _sampled(seconds: float) -> Mapping[str, int]:
    samples: Counter[str] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        samples[";".join(_names(frame))] += 1

    previous = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, _SAMPLE_INTERVAL, _SAMPLE_INTERVAL)
    try:
        await asyncio.sleep(seconds)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    return samples


def _names(frame: FrameType | None) -> Sequence[str]:
    """The functions of a stack, the outermost first, without those that run the event loop."""
    names = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{_module(code.co_filename)}:{code.co_qualname}")
        frame = frame.f_back
    runs_loop = (number for number, name in enumerate(names) if name.startswith(("uvloop", "asyncio.runners")))
    return names[: next(runs_loop, len(names))][::-1] or [_LOOP]


def _module(path: str) -> str:
    """The module of a source file."""
    for root in sorted(sys.path, key=len, reverse=True):
        if root and path.startswith(f"{root}/"):
            path = path[len(root) + 1 :]
            break
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".").removeprefix("integration_server.")


def _load(address: str, seeded: Sequence[Seeded], seconds: float, begun: Event) -> None:
    """Call `GetCredentials` for this time; the process of the clients."""
    begun.set()
    asyncio.run(_call_for(address, seeded, seconds))


async def _call_for(address: str, seeded: Sequence[Seeded], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        get_credentials = IntegrationServiceStub(channel).GetCredentials

        async def call_forever(number: int) -> None:
            while loop.time() < end:
                number = (number + 1) % len(seeded)
                one = seeded[number]
                request = pb.GetCredentialsRequest(integration_id=one.integration_id, user_id=one.user_id)
                await get_credentials(request, timeout=_DEADLINE)

        await asyncio.gather(*(call_forever(number * len(seeded) // _CLIENTS) for number in range(_CLIENTS)))


def folded_path(kind: str) -> Path:
    """The file with the folded stacks."""
    return RESULTS / f"flame-{kind}.folded"


async def write_stacks(seconds: float) -> Sequence[Path]:
    """Sample each kind, and write its folded stacks, the format of the usual flame graph tools."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        stacks = await sample_stacks(kind, seconds)
        folded_path(kind).write_text("".join(f"{stack} {count}\n" for stack, count in sorted(stacks.items())))
    return [folded_path(kind) for kind in KINDS]


def read_stacks(path: Path) -> Mapping[str, int]:
    """The stacks of a file."""
    lines = (line.rpartition(" ") for line in path.read_text().splitlines())
    return {stack: int(count) for stack, _, count in lines}
