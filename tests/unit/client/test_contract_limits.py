"""The client's numbers are those of the server and of the contract, which states them in comments."""

from pathlib import Path

from integration_server.client import operations, store
from integration_server.rpc import credential_results, credential_watch
from integration_server.service.operators import ports

PROTO = Path(__file__).resolve().parents[3] / "protos" / "integrations" / "v1" / "operator_service.proto"


def test_the_limits_of_the_client_are_those_of_the_server() -> None:
    assert operations.MAX_BATCH == credential_results.MAX_BATCH
    assert operations.MAX_DUE_COUNT == ports.MAX_DUE_COUNT
    assert store.MAX_IDS == credential_watch.MAX_WATCHED


def test_the_contract_says_what_due_work_is_counted_up_to() -> None:
    assert f"{ports.MAX_DUE_COUNT} means that or more" in PROTO.read_text()
