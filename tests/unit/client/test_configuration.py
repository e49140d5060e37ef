"""The configuration of the client: environment variables, contradictions, TLS by default, the service config."""

import json
from pathlib import Path

import pytest

from integration_server.client.configuration import Configuration, ConfigurationError
from integration_server.client.rpcs import RPCS


@pytest.mark.parametrize(
    ("address", "uses_tls"),
    [
        ("localhost:50051", False),
        ("127.0.0.1:50051", False),
        ("dns:///127.3.0.1:1", False),
        ("[::1]:50051", False),
        ("ipv6:[::1]:50051", False),
        ("unix:/run/server.sock", False),
        ("integrations:50051", True),
        ("dns:///integrations.example:50051", True),
        ("10.0.0.1:50051", True),
        ("localhost.example:50051", True),
        ("ipv4:10.0.0.1:50051", True),
    ],
)
def test_only_addresses_of_this_machine_are_plaintext_by_default(address: str, uses_tls: bool) -> None:
    assert Configuration(address=address).uses_tls is uses_tls
    assert Configuration(address=address, tls=False).uses_tls is False
    assert Configuration(address=address, tls=True).uses_tls is True


def test_reads_the_environment() -> None:
    configuration = Configuration.from_env(
        {
            "INTEGRATIONS_ADDRESS": "integrations:50051\n",
            "INTEGRATIONS_TOKEN_FILE": "/run/token",
            "INTEGRATIONS_CA_FILE": "/run/ca.pem",
            "INTEGRATIONS_TLS": " TRUE\n",
            "INTEGRATIONS_TOKEN": " ",
        }
    )
    assert configuration.target == "dns:///integrations:50051"
    assert (configuration.token_file, configuration.ca_file) == (Path("/run/token"), Path("/run/ca.pem"))
    assert (configuration.tls, configuration.token) == (True, None)


def test_an_empty_environment_is_not_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTEGRATIONS_ADDRESS", "integrations:50051")
    assert Configuration.from_env().address == "integrations:50051"
    with pytest.raises(ConfigurationError, match="INTEGRATIONS_ADDRESS"):
        Configuration.from_env({})


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "INTEGRATIONS_ADDRESS"),
        ({"INTEGRATIONS_ADDRESS": "a:1", "INTEGRATIONS_TLS": "perhaps"}, "INTEGRATIONS_TLS"),
        ({"INTEGRATIONS_ADDRESS": "a:1", "INTEGRATIONS_CERT_FILE": "c"}, "key_file"),
        ({"INTEGRATIONS_ADDRESS": "a:1", "INTEGRATIONS_TOKEN": "t", "INTEGRATIONS_TOKEN_FILE": "f"}, "token_file"),
        ({"INTEGRATIONS_ADDRESS": "a:1", "INTEGRATIONS_CA_FILE": "c", "INTEGRATIONS_TLS": "no"}, "ca_file"),
    ],
)
def test_names_what_is_wrong(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Configuration.from_env({"OTHER": "x", **environment})


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:50051",
        "https://integrations.example:50051/",
        "integrations",
        "127.0.0.1",
        "127.0.0.1:99999",
        "integrations:",
        "integrations:port",
        ":50051",
        "::1:50051",
        "dns:///",
        "dns:///:50051",
        "dns:///integrations:99999",
        "dns:///integrations:",
        " integrations:50051",
        "integrations:50051\n",
        "integrations :50051",
        "integrations\0:50051",
        "ada:password@integrations:50051",
        "dns:///ada@localhost:50051",
        "integrations:50051?a=b",
        "integrations:50051#a",
    ],
)
def test_an_address_that_cannot_be_one_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^address: "):
        Configuration(address=address)


@pytest.mark.parametrize(
    "address",
    [
        "integrations.example:443",
        "[2001:db8::1]:50051",
        "dns:///integrations.example",
        "dns://10.0.0.1/integrations:50051",
        "dns:integrations:50051",
        "ipv4:10.0.0.1:1,10.0.0.2:2",
        "unix:/run/server.sock",
        "xds:///integrations",
    ],
)
def test_negative_control_addresses_of_grpc_are_not(address: str) -> None:
    assert Configuration(address=address).target.endswith(address)


def test_only_idempotent_rpcs_are_repeated() -> None:
    options = dict(Configuration(address="a:1").options)
    config = json.loads(str(options["grpc.service_config"]))
    repeated = {name["method"] for method in config["methodConfig"] for name in method["name"]}
    assert "GetCredentials" in repeated
    assert repeated & {"Connect", "CallProvider", "RefreshToken", "DisconnectIntegration", "UpdateIntegration"} == set()
    assert {rpc.name for rpc in RPCS} >= repeated
    assert int(options["grpc.keepalive_time_ms"]) >= 10_000  # the server's limit


def test_the_token_is_not_printed() -> None:
    assert "secret" not in repr(Configuration(address="a:1", token="secret"))
