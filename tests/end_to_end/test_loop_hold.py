"""No input holds an event loop of the server for more than 50 ms of CPU time: the worst of each shape, for every RPC
and every path. `integration/test_request_limits.py` has the negative control.
"""

import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.struct_pb2 import Struct

from integrations.v1 import integration_service_pb2 as pb
from tests.loop_hold.meter import MAX_HOLD
from tests.loop_hold.probe import ALL_METHODS, HoldProbe, http_inputs, probed_server, rpc_inputs

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def probe(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HoldProbe]:
    """A measured server process. The timeout for bodies is short, because some requests have an incomplete one."""
    directory = tmp_path_factory.mktemp("hold")
    shutil.copy(_sqlite_template, directory / "integrations.db")
    url = f"sqlite:///{directory / 'integrations.db'}"
    async with probed_server(directory, url, SIDECAR_BODY_TIMEOUT_SECONDS="0.5") as running:
        yield running


@pytest.mark.slow
async def test_the_worst_request_of_each_shape(probe: HoldProbe) -> None:
    before = probe.cases
    assert not await probe.measure_rpcs(rpc_inputs(probe.known, all_sizes=False))
    assert not await probe.measure_compressed(ALL_METHODS)
    assert not await probe.measure_metadata(ALL_METHODS)
    assert not await probe.measure_call(probe.system.raw("NoSuchMethod")(b"\x0a\x00" * 500_000))
    assert probe.cases - before > 40 * len(ALL_METHODS)
    assert 0 < probe.longest.seconds <= MAX_HOLD


@pytest.mark.slow
async def test_the_worst_requests_of_each_shape_and_size(probe: HoldProbe) -> None:
    assert not await probe.measure_rpcs(rpc_inputs(probe.known, all_sizes=True))


@pytest.mark.slow
async def test_a_page_of_the_worst_configs(probe: HoldProbe) -> None:
    config = Struct()
    config.update({"values": [{} for _ in range(4900)]})
    with suppress(grpc.aio.AioRpcError):  # a quota
        for _ in range(15):
            await probe.system.begin("hoarder", config=config)
    page = pb.ListIntegrationsRequest(user_id="hoarder", page_size=15)
    assert not await probe.measure_call(probe.system.service.ListIntegrations(page))


@pytest.mark.slow
async def test_the_worst_http_request_of_each_shape(probe: HoldProbe) -> None:
    assert not await probe.measure_http(http_inputs())
