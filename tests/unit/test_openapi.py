"""The OpenAPI document describes the REST API of docs/rest-api.md. `make lint` validates it as OpenAPI 3.1."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from integrations.v1 import integration_service_pb2, operator_service_pb2
from integrations.v1.integration_pb2 import Integration, Status
from protos.openapi import UnsupportedContract, openapi_document

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = json.loads((PROJECT / "protos" / "integrations.v1.openapi.json").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
HTTP: Any = annotations_pb2.http  # its stubs do not say that it is an extension
API = "/api/v1/integrations"
SERVICE = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"]


def documented_requests() -> Iterator[tuple[str, str, set[str]]]:
    """Method, path and fields of each request in the tables of docs/rest-api.md."""
    text = (PROJECT / "docs" / "rest-api.md").read_text()
    for names, rest in re.findall(r"^\| (`[A-Z]+\b[^|]*)\|([^|]*)\|$", text, re.MULTILINE):
        path = re.search(rf"({API}[^`]*)`", names)
        if path is None:
            continue
        methods = re.findall(r"\b(GET|PUT|POST|DELETE)\b", names)
        alternatives = [path[1], *(f"{API}{other}" for other in re.findall(r"`(/[^`]+)`", names))]
        for method in methods:
            for each in alternatives:
                yield method.lower(), each.replace("{id}", "{integration_id}"), named(rest, method)


def named(cell: str, method: str) -> set[str]:
    """The fields that a cell names for a method: "A, B; POST: C"."""
    general, *particular = cell.split(";")
    if particular and f"{method}:" in particular[0]:
        general = particular[0]
    if re.match(r" *(?:PUT|POST): ", general) and f"{method}:" not in general:
        return set()
    return {name for listed in re.findall(r"`([a-z_, ]+)`", general) for name in listed.split(", ")}


REQUESTS = list(documented_requests())


def test_the_documented_requests_are_found() -> None:
    assert len(REQUESTS) == 15
    assert ("put", f"{API}/{{integration_id}}", {"name", "config", "is_active"}) in REQUESTS


@pytest.mark.parametrize(
    ("method", "path", "fields"), REQUESTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_documented_request_is_described(method: str, path: str, fields: set[str]) -> None:
    operation = DOCUMENT["paths"][path][method]
    described = {parameter["name"] for parameter in operation["parameters"]}
    if "requestBody" in operation:
        described |= set(resolve(operation["requestBody"]["content"]["application/json"]["schema"])["properties"])
    assert fields <= described


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference names."""
    resolved: dict[str, Any] = SCHEMAS[schema["$ref"].removeprefix("#/components/schemas/")]
    return resolved


def test_every_method_with_an_http_rule_is_described_and_no_other() -> None:
    operations = {operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()}
    with_rule = {method.name for method in SERVICE.methods if method.GetOptions().HasExtension(HTTP)}
    assert {re.sub(r"_\d+$", "", name) for name in operations} == with_rule
    assert "GetCredentials" not in with_rule
    assert len(operations) == sum(len(path) for path in DOCUMENT["paths"].values())


def references(value: object) -> Iterator[str]:
    """All references in a value."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref":
                yield each
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_reference_has_a_schema_and_every_schema_is_used() -> None:
    assert {reference.removeprefix("#/components/schemas/") for reference in references(DOCUMENT)} == set(SCHEMAS)


def test_json_is_that_of_the_transcoder() -> None:
    assert set(SCHEMAS["Integration"]["properties"]) == {field.name for field in Integration.DESCRIPTOR.fields}
    assert SCHEMAS["Integration"]["properties"]["integration_id"]["type"] == "string"
    assert SCHEMAS["RefreshTokenRequest"]["properties"]["integration_id"]["type"] == ["string", "integer"]
    assert SCHEMAS["Status"]["enum"] == list(Status.keys())
    assert SCHEMAS["Integration"]["properties"]["create_time"]["format"] == "date-time"


def test_errors_and_tokens_are_described() -> None:
    assert DOCUMENT["security"] == [{"bearer": []}]
    assert DOCUMENT["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert "#/components/schemas/google.rpc.Status" in references(operation["responses"]["default"])
            assert ("security" in operation) == operation["operationId"].startswith("HandleCallback")
    details = SCHEMAS["google.rpc.Status"]["properties"]["details"]["items"]
    assert {"google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"} <= {
        reference.rpartition("/")[2] for reference in references(details)
    }


def test_a_users_call_needs_no_user_id() -> None:
    (parameter,) = (
        each for each in DOCUMENT["paths"][f"{API}/status"]["get"]["parameters"] if each["name"] == "user_id"
    )
    assert parameter["required"] is False
    assert SCHEMAS["ConnectRequest"]["required"] == ["integration_type"]


def test_what_the_converter_does_not_know_is_an_error() -> None:
    file = FileDescriptorProto()
    operator_service_pb2.DESCRIPTOR.CopyToProto(file)
    rule = file.service[0].method[0].options.Extensions[HTTP]
    rule.get, rule.response_body = "/api/v1/x", "integrations"
    with pytest.raises(UnsupportedContract, match="FindIntegrations"):
        openapi_document(FileDescriptorSet(file=[file]).SerializeToString())
