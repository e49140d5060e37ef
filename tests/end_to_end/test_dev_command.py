"""`python -m integration_server dev`, which `make run` runs."""

import re
import signal
import socket
import stat
from pathlib import Path

import grpc.aio
import pytest

from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.processes import free_port, run, started
from tests.end_to_end.system import clients_of


def dev_environment() -> dict[str, str]:
    """Free ports; all other settings have their defaults."""
    names = ("GRPC_ADDRESS", "SIDECAR_ADDRESS", "SANDBOX_ADDRESS", "METRICS_ADDRESS")
    return {"COLUMNS": "200", **{name: f"127.0.0.1:{free_port()}" for name in names}}


async def test_it_connects_an_account_prints_the_addresses_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    for run_number in range(2):  # again in the same directory, with the data of the first
        environment = dev_environment()
        async with started(tmp_path, environment, "dev", forked=False) as command:
            output = await command.wait_for_output("Press Ctrl-C to stop.")
            for address in environment.values():
                if ":" in address:
                    assert address in output
            assert "ACTIVE" in output
            assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", output)
            assert f"status --user ada --address {environment['GRPC_ADDRESS']}" in output
            async with clients_of(environment["GRPC_ADDRESS"], f"http://{environment['SIDECAR_ADDRESS']}") as clients:
                integration = await clients.get(1)
                assert integration.status == integration_pb2.STATUS_ACTIVE
                token = await clients.bearer_token(1)
                assert token not in output
                with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
                    await clients.service.ListIntegrations(pb.ListIntegrationsRequest())
                await command.wait_for_output("INVALID_ARGUMENT INVALID_FIELD")
            shown = command.output.partition("Press Ctrl-C")[2].splitlines()[1:]
            calls = [line.split()[1:-2] for line in shown]  # without the time and the duration
            assert calls == [
                ["GetIntegration", "OK"],
                ["GetCredentials", "OK"],
                ["ListIntegrations", "INVALID_ARGUMENT", "INVALID_FIELD"],
            ]
            assert token not in command.output
            command.send(signal.SIGINT)
            finished = await command.finished()
        assert (finished.code, finished.err) == (0, ""), run_number
        for address in environment.values():
            if ":" in address:
                assert_free(address)
    key = tmp_path / "data" / "encryption.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32


def assert_free(address: str) -> None:
    """Nothing listens on the address."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


async def test_a_taken_sandbox_port_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        finished = await run(tmp_path, {**dev_environment(), "SANDBOX_ADDRESS": address}, "dev")
    assert finished.code == 1
    assert address in finished.err
    assert "SANDBOX_ADDRESS" in finished.err
