"""The client's numbers are those of the server and of the contract, which states them in comments."""

from pathlib import Path

import pytest

from integration_server.client import operations, store
from integration_server.rpc import credential_results, credential_watch
from integration_server.service.operators import ports

PROTO = Path(__file__).resolve().parents[3] / "protos" / "integrations" / "v1" / "operator_service.proto"


@pytest.mark.parametrize(
    ("of_client", "of_server"),
    [
        (operations.MAX_BATCH, credential_results.MAX_BATCH),
        (operations.MAX_DUE_COUNT, ports.MAX_DUE_COUNT),
        (store.MAX_IDS, credential_watch.MAX_WATCHED),
    ],
)
def test_a_limit_of_the_client_is_that_of_the_server(of_client: int, of_server: int) -> None:
    assert of_client == of_server


def test_the_contract_says_what_due_work_is_counted_up_to() -> None:
    assert f"{ports.MAX_DUE_COUNT} means that or more" in PROTO.read_text()
