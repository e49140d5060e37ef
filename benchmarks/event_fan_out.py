"""An event costs little for each stream that gets it, and nothing for the streams of other users.

The use case and the servicer run in this process over a database in memory, without a network: what is measured is the
server's own work for a delivered message, in CPU time. The reference is one encoding of an event with its cursor, which
streams share.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.progress import Progress

from benchmarks.harness import Bound, Result
from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import Integration, Status
from integration_server.rpc import mapping
from integration_server.rpc.integration_service import IntegrationService
from integration_server.service.credentials.credential_cipher import EncryptedTokens
from integration_server.service.events.event_stream import StreamItem
from integration_server.service.integrations.ports import IntegrationUpdate
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.system import ADA, FakeSystem

_BATCH = 20  # events of one poll
_NONCE = bytes(12)  # nothing is kept secret here


@dataclass(frozen=True, slots=True)
class EventFanOutPlan:
    """The parameters. `bound` is the highest ratio of the cost of a message to the cost of an encoding."""

    streams: int
    other_streams: int
    events: int
    bound: float


class _Aead:
    """AES-256-GCM with one key."""

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(256))

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        return self._cipher.encrypt(_NONCE, plaintext, repr(associated_data).encode())

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        return self._cipher.decrypt(_NONCE, encrypted, repr(associated_data).encode())


class _Streams:
    """Open streams of one user."""

    def __init__(self, servicer: IntegrationService, user_id: str, count: int) -> None:
        self.received = 0
        self._servicer = servicer
        self.tasks = [asyncio.create_task(self._read(user_id)) for _ in range(count)]

    async def _read(self, user_id: str) -> None:
        context: Any = None  # not used by this method
        async for _ in self._servicer.WatchIntegrations(pb.WatchIntegrationsRequest(user_id=user_id), context):
            self.received += 1

    async def received_all(self, messages: int) -> None:
        """Wait until the streams have received this number of messages."""
        while self.received < messages:  # noqa: ASYNC110  # each iteration lets the streams run
            await asyncio.sleep(0)


async def measure(plan: EventFanOutPlan, progress: Progress) -> Result:
    """Measure the streams of one user, then the same with many streams of another user beside them."""
    alone = await _cost_of_message(plan, 0, progress)
    crowded = await _cost_of_message(plan, plan.other_streams, progress)
    encoding = await _cost_of_encoding()
    ratio = alone / encoding
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            "Messages": f"{plan.streams * plan.events:,}",
            "CPU of one encoding": f"{1e6 * encoding:.1f} µs",
            "CPU of a message": f"{1e6 * alone:.1f} µs",
            f"… beside {plan.other_streams:,} streams of another user": f"{1e6 * crowded:.1f} µs",
        },
        bounds=[
            Bound(
                f"a message costs at most {plan.bound:g} times one encoding", f"{ratio:.2f} times", ratio <= plan.bound
            ),
            Bound(
                "… at most twice as much beside the streams of another user",
                f"{crowded / alone:.2f} times",
                crowded <= 2 * alone,
            ),
        ],
        raw={"encoding": encoding, "message": alone, "message_beside_others": crowded},
    )


async def _cost_of_message(plan: EventFanOutPlan, other_streams: int, progress: Progress) -> float:
    """The CPU seconds of a delivered message, without those of the write that caused it."""
    system = FakeSystem(aead=_Aead())
    servicer = IntegrationService(system.use_cases, system.clock)
    integration = await system.connect()
    others = _Streams(servicer, "eve", other_streams)
    streams = _Streams(servicer, ADA, plan.streams)
    await others.received_all(other_streams)
    await streams.received_all(plan.streams)
    task, cost = progress.add_task("events", total=plan.events), 0.0
    for sent in range(_BATCH, plan.events + 1, _BATCH):
        await _rename(system, integration, sent)
        begin = time.thread_time()
        await system.change_reader.poll()
        await streams.received_all((sent + 1) * plan.streams)
        cost += time.thread_time() - begin
        progress.update(task, completed=sent)
    for open_stream in (*streams.tasks, *others.tasks):
        open_stream.cancel()
    await asyncio.gather(*streams.tasks, *others.tasks, return_exceptions=True)
    return cost / (plan.events // _BATCH * _BATCH * plan.streams)


async def _rename(system: FakeSystem, integration: Integration, number: int) -> None:
    for offset in range(_BATCH):
        change = IntegrationUpdate(name=f"name-{number + offset}")
        await system.integration_manager.update_integration(integration.integration_id, ADA, change)


async def _cost_of_encoding() -> float:
    """The CPU seconds of encoding an event with its cursor."""
    system = FakeSystem()
    cursors = EncryptedTokens(_Aead(), "event-cursor", str)
    integration = await system.connect()
    event = IntegrationEvent(
        EventKind.UPDATED,
        system.clock(),
        integration.integration_id,
        integration.user_id,
        integration.integration_type,
        Status.ACTIVE,
        Status.ACTIVE,
    )
    count, begin = 5_000, time.thread_time()
    for _ in range(count):
        item = StreamItem(await cursors.make("x" * 100), event)
        mapping.encode_stream_item(item).SerializeToString()
    return (time.thread_time() - begin) / count
