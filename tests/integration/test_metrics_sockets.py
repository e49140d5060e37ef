"""A process gives its metrics over a Unix socket, from a thread of its own."""

import asyncio
import socket
import time
from pathlib import Path

import httpx
import pytest

from integration_server.lifecycle import AddressTaken
from integration_server.observability.listener import MetricsCollector, SocketSource
from integration_server.observability.metrics import METRICS, Metrics
from integration_server.observability.snapshots import (
    InvalidSnapshot,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
    snapshot_server,
    take_snapshot,
)
from integration_server.setting_types import Address
from integration_server.wiring.metrics_listener import measured_process, running_metrics_listener
from tests.unit.observability.test_merging import process, rpcs_of, sample


def read(path: Path) -> Snapshot:
    """Read a snapshot as another process does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    return decode_snapshot(data)


async def test_a_snapshot_is_given_while_the_event_loop_is_blocked(tmp_path: Path) -> None:
    metrics, path = Metrics(), tmp_path / "server.metrics"
    metrics.counter(METRICS.rpcs)("S/Get", "OK", "")
    async with measured_process(metrics, "server", path):
        await asyncio.sleep(0)  # the measurement begins
        time.sleep(0.6)  # noqa: ASYNC251  # blocks the loop, as a bug does
        snapshot = read(path)  # in the blocked loop's own thread
    assert snapshot.values[METRICS.rpcs.name, (("method", "S/Get"), ("status", "OK"), ("reason", ""))] == 1
    assert snapshot.values[METRICS.loop_lag.name, (("process", "server"),)] >= 0.3


async def test_a_process_that_replaces_another_takes_over_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "server.metrics"
    with snapshot_server(path, lambda: encode_snapshot(process(rpcs=1, instance="killed"))):
        pass
    assert path.exists()  # as after a kill
    with snapshot_server(path, lambda: encode_snapshot(process(rpcs=2, instance="new"))):
        assert (await SocketSource(path).fetch()).instance == "new"
        with socket.socket(socket.AF_UNIX) as impatient:
            impatient.connect(str(path))  # and goes without reading
        assert (await SocketSource(path).fetch()).instance == "new"


@pytest.mark.slow
async def test_two_processes_one_of_which_hangs_over_http(tmp_path: Path) -> None:
    sources = {name: SocketSource(tmp_path / f"{name}.metrics") for name in ("one", "two", "hung", "absent")}
    with (
        snapshot_server(sources["one"].path, lambda: encode_snapshot(process(rpcs=3))),
        snapshot_server(sources["two"].path, lambda: encode_snapshot(process(rpcs=4))),
        socket.socket(socket.AF_UNIX) as hung,
    ):
        hung.bind(str(sources["hung"].path))
        hung.listen(8)  # and never accepts
        async with running_metrics_listener(Address("127.0.0.1", 0), sources) as url, httpx.AsyncClient() as client:
            response = await client.get(url, timeout=60)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert rpcs_of(response.content) == 7
    up = [sample(response.content, METRICS.process_up.name, process=name) for name in sources]
    assert up == [1, 1, 0, 0]


@pytest.mark.parametrize("sent", [b"", b"{", b"GET / HTTP/1.1\r\n\r\n", b"\0" * (17 * 1024 * 1024)])
async def test_a_process_that_sends_something_else_is_down(tmp_path: Path, sent: bytes) -> None:
    source = SocketSource(tmp_path / "forged.metrics")
    with snapshot_server(source.path, lambda: sent):
        with pytest.raises(InvalidSnapshot):
            await source.fetch()
        merged = await MetricsCollector({"forged": source}).exposition()
    assert sample(merged, METRICS.process_up.name, process="forged") == 0


async def test_an_error_ends_one_response_only(tmp_path: Path) -> None:
    source, errors = SocketSource(tmp_path / "server.metrics"), [RuntimeError(), OSError(), ValueError()]

    def take() -> bytes:
        if errors:
            raise errors.pop()
        return encode_snapshot(process(rpcs=1))

    with snapshot_server(source.path, take):
        for _ in range(3):
            with pytest.raises(InvalidSnapshot):
                await source.fetch()
        assert (await source.fetch()).instance == "1"


async def test_a_snapshot_leaves_the_interpreter_to_others(tmp_path: Path) -> None:
    pauses: list[float] = []
    metrics = Metrics()
    for metric in METRICS:
        if metric.kind == "counter":
            metrics.counter(metric)
    take_snapshot(metrics, "1", pauses.append)
    assert len(pauses) >= len([metric for metric in METRICS if metric.kind == "counter"])


async def test_the_default_port_moves_where_another_server_has_it_and_a_set_one_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Address(*other.getsockname())
        with pytest.raises(AddressTaken, match="METRICS_ADDRESS"):
            async with running_metrics_listener(taken, {}):
                pass
        async with running_metrics_listener(taken, {}, may_move=True) as url, httpx.AsyncClient() as client:
            assert f":{taken.port}/" not in url
            assert (await client.get(url)).status_code == 200
