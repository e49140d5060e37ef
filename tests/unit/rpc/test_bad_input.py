"""Each invalid request is rejected with the name of its field, and none causes an internal error."""

import math
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration_server.domain.errors import InvalidField
from integration_server.rpc import mapping
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.webhook_pb2 import WebhookHeader
from tests.existence_attack import raise_error_of
from tests.fakes.inmemory_grpc import InMemoryGrpc, RpcError
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.unit.rpc.conftest import client_of
from tests.unit.rpc.requests import (
    DURATION_FIELDS,
    MASK_FIELDS,
    METHODS,
    NUMBER_FIELDS,
    STRUCT_FIELDS,
    TEXT_FIELDS,
    UNKNOWN_INTEGRATION_ID,
    good,
    structs_with,
    with_text,
)

INTERNAL_ERRORS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


async def refusal(client: InMemoryGrpc, method: str, request: Any) -> RpcError:
    with pytest.raises(RpcError) as refused:
        raise_error_of(await client.call(method, request))
    return refused.value


async def assert_field_is_reported(client: InMemoryGrpc, method: str, field: str, request: Any) -> None:
    refused = await refusal(client, method, request)
    (reported,) = refused.fields
    assert reported.partition("[")[0] == field
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.fixture(autouse=True)
async def _an_integration(system: FakeSystem) -> None:
    await system.connect()


def test_the_fields_of_the_contract_are_found() -> None:
    assert ("HandleCallback", "error_description") in TEXT_FIELDS
    assert ("Connect", "scopes") in TEXT_FIELDS
    assert ("ListIntegrations", "page_size", 31) in NUMBER_FIELDS
    assert STRUCT_FIELDS
    assert DURATION_FIELDS
    assert MASK_FIELDS


# --- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "field"), TEXT_FIELDS)
async def test_every_text_is_bounded_and_has_no_nul(client: InMemoryGrpc, method: str, field: str) -> None:
    for text in ("\0", "a\0b", "a" * 20_000):
        await assert_field_is_reported(client, method, field, with_text(method, field, text))


NAMING_A_USER = [method for method, field in TEXT_FIELDS if field == "user_id"]


@pytest.mark.parametrize("method", NAMING_A_USER)
async def test_a_user_has_no_control_characters(client: InMemoryGrpc, method: str) -> None:
    for user_id in ("ada\n", "\x1b[8mada", "a\tda", "ada\x7f", "ada\x9b", "\r"):
        await assert_field_is_reported(client, method, "user_id", with_text(method, "user_id", user_id))


@pytest.mark.parametrize("user_id", ["ada\ud800", "\udfff"])
def test_a_user_has_no_lone_surrogates(user_id: str) -> None:
    with pytest.raises(InvalidField, match="surrogate"):
        mapping.decode_user_id(user_id)
    # Protobuf refuses them too, in both directions.
    with pytest.raises((UnicodeError, ValueError)):
        pb.GetIntegrationRequest(user_id=user_id)
    encoded = user_id.encode("utf-8", "surrogatepass")
    with pytest.raises(DecodeError):
        pb.GetIntegrationRequest.FromString(b"\x12" + bytes([len(encoded)]) + encoded)


@pytest.mark.parametrize(
    "user_id", ["ada\u200b", "a\u00adda", "李\u3000雷", "a\u200cda", "ada\ue000", "ada ", "ada\u0378"]
)
def test_other_characters_stay_in_a_user(user_id: str) -> None:
    assert mapping.decode_user_id(user_id) == user_id


@pytest.mark.parametrize("method", NAMING_A_USER)
async def test_a_user_has_at_most_128_characters(client: InMemoryGrpc, method: str) -> None:
    for user_id in ("u" * 129, "🦆" * 129):
        await assert_field_is_reported(client, method, "user_id", good(method, user_id=user_id))


# The other RPCs accept requests without a user.
@pytest.mark.parametrize(
    "method", sorted({*NAMING_A_USER} - {"HandleCallback", "WatchIntegrations", "WatchCredentials"})
)
async def test_a_user_is_required(client: InMemoryGrpc, method: str) -> None:
    await assert_field_is_reported(client, method, "user_id", good(method, user_id=""))


@pytest.mark.parametrize("user_id", ["u" * 128, "🦆" * 128, " ", "Ада", "'; DROP TABLE integrations; --"])
async def test_a_users_name_is_opaque(client: InMemoryGrpc, user_id: str) -> None:
    response = await client.call("Connect", good("Connect", user_id=user_id))
    found = await client.call(
        "GetIntegration", good("GetIntegration", user_id=user_id, integration_id=response.integration_id)
    )
    assert found.integration.user_id == user_id


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("Connect", "integration_type"),
        ("ConnectWithApiKey", "integration_type"),
        ("ConnectWithApiKey", "api_key"),
        ("HandleCallback", "state"),
        ("HandleCallback", "code"),
        ("ConfirmConnection", "confirmation_token"),
        ("ListWebhookEvents", "consumer"),
        ("AckWebhookEvents", "consumer"),
        ("AckWebhookEvents", "through_number"),
        ("ReceiveWebhook", "integration_type"),
        ("ReceiveWebhook", "endpoint"),
        ("ReceiveWebhook", "url"),
        ("ReceiveWebhook", "method"),
    ],
)
async def test_a_missing_required_field_is_reported(
    client: InMemoryGrpc, system: FakeSystem, method: str, field: str
) -> None:
    state = (await system.begin()).state
    request = good(method)
    if method == "HandleCallback":
        request.state = state
    request.ClearField(field)
    await assert_field_is_reported(client, method, field, request)


@pytest.mark.parametrize("method", ["Connect", "ConnectWithApiKey", "ListIntegrations", "WatchIntegrations"])
async def test_an_unknown_type_is_rejected(client: InMemoryGrpc, method: str) -> None:
    refused = await refusal(client, method, good(method, integration_type="unheard_of"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_INTEGRATION_TYPE")


@pytest.mark.parametrize("field", ["redirect_uri", "return_url"])
async def test_a_url_that_is_not_allowed_is_reported(client: InMemoryGrpc, field: str) -> None:
    refused = await refusal(client, "Connect", good("Connect", **{field: "https://evil.example/"}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REDIRECT_URI_NOT_ALLOWED")
    assert refused.fields == [field]


@pytest.mark.parametrize("scope", ["", "a b", 'a"b', "a\\b", "é", "a\n", "s" * 256])
@pytest.mark.parametrize(("method", "field"), [("Connect", "scopes"), ("GetCredentials", "required_scopes")])
async def test_a_scope_has_the_syntax_of_rfc_6749(client: InMemoryGrpc, method: str, field: str, scope: str) -> None:
    refused = await refusal(client, method, good(method, **{field: ["read", scope]}))
    assert refused.fields == [f"{field}[1]"]


async def test_there_are_at_most_100_scopes(client: InMemoryGrpc) -> None:
    await client.call("Connect", good("Connect", scopes=[f"s{number}" for number in range(100)]))
    request = good("Connect", scopes=[f"s{number}" for number in range(101)])
    await assert_field_is_reported(client, "Connect", "scopes", request)


@pytest.mark.parametrize("field", ["api_key", "api_secret", "webhook_secret"])
@pytest.mark.parametrize("value", ["key\0", "k" * 4097, " " * 4097])
async def test_a_key_is_limited_and_not_quoted(client: InMemoryGrpc, field: str, value: str) -> None:
    request = good("ConnectWithApiKey", **{field: value})
    await assert_field_is_reported(client, "ConnectWithApiKey", field, request)
    assert value not in (await refusal(client, "ConnectWithApiKey", request)).message


@pytest.mark.parametrize("query", ["realmId=%00", "%00=1", "a=1&b=x%00y"])
async def test_a_percent_encoded_nul_is_rejected(client: InMemoryGrpc, query: str) -> None:
    await assert_field_is_reported(client, "HandleCallback", "query", good("HandleCallback", query=query))


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "field", "bits"), NUMBER_FIELDS)
async def test_a_negative_number_is_rejected(client: InMemoryGrpc, method: str, field: str, bits: int) -> None:
    for number in (-1, -(2**bits)):
        await assert_field_is_reported(client, method, field, good(method, **{field: number}))


@pytest.mark.parametrize(("method", "field", "bits"), NUMBER_FIELDS)
async def test_a_huge_number_is_no_internal_error(client: InMemoryGrpc, method: str, field: str, bits: int) -> None:
    request = good(method, **{field: 2**bits - 1})
    if field == "page_size":
        await client.call(method, request)
    elif field == "through_number":
        await assert_field_is_reported(client, method, field, request)  # of an event that does not exist
    else:
        assert (await refusal(client, method, request)).reason == "INTEGRATION_NOT_FOUND"


@pytest.mark.parametrize(
    "method",
    [method for method, field, _ in NUMBER_FIELDS if field == "integration_id" and "Connect" not in method[:7]],
)
async def test_an_integration_is_required(client: InMemoryGrpc, method: str) -> None:
    await assert_field_is_reported(client, method, "integration_id", good(method, integration_id=0))


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-1, 0), (0, -1), (1, -1), (315_576_000_001, 0), (2**63 - 1, 0), (-(2**63), 0), (0, 10**9), (0, 2**31 - 1)],
)
@pytest.mark.parametrize(("method", "field"), DURATION_FIELDS)
async def test_an_invalid_duration_is_rejected(
    client: InMemoryGrpc, method: str, field: str, seconds: int, nanos: int
) -> None:
    request = good(method, **{field: Duration(seconds=seconds, nanos=nanos)})
    await assert_field_is_reported(client, method, field, request)


async def test_a_previous_secret_is_valid_for_at_most_30_days(client: InMemoryGrpc) -> None:
    request = good("SetWebhookSecret", previous_ttl=Duration(seconds=30 * 86_400 + 1))
    await assert_field_is_reported(client, "SetWebhookSecret", "previous_ttl", request)


@pytest.mark.parametrize("secret", ["key\0", "k" * 4097])
async def test_a_webhook_secret_is_not_quoted(client: InMemoryGrpc, secret: str) -> None:
    request = good("SetWebhookSecret", webhook_secret=secret)
    await assert_field_is_reported(client, "SetWebhookSecret", "webhook_secret", request)
    assert secret not in (await refusal(client, "SetWebhookSecret", request)).message


async def test_there_are_at_most_200_webhook_headers(client: InMemoryGrpc) -> None:
    headers = [WebhookHeader(name="x", value=b"y")] * 201
    await assert_field_is_reported(client, "ReceiveWebhook", "headers", good("ReceiveWebhook", headers=headers))


async def test_the_longest_duration_is_accepted(client: InMemoryGrpc) -> None:
    request = good("GetCredentials", min_ttl=Duration(seconds=315_576_000_000, nanos=999_999_999))
    assert (await client.call("GetCredentials", request)).credentials.bearer_token == "access-1"  # capped


# --- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "field"), STRUCT_FIELDS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_a_number_that_json_cannot_represent_is_rejected(
    client: InMemoryGrpc, method: str, field: str, number: float
) -> None:
    for content in ({"k": number}, {"k": [{"k": number}]}):
        config = Struct()
        config.update(content)
        await assert_field_is_reported(client, method, field, good(method, **{field: config}))


@pytest.mark.parametrize(("method", "field"), STRUCT_FIELDS)
async def test_a_nul_anywhere_in_a_config_is_rejected(client: InMemoryGrpc, method: str, field: str) -> None:
    for config in structs_with("a\0b"):
        await assert_field_is_reported(client, method, field, good(method, **{field: config}))


@pytest.mark.parametrize(("method", "field"), STRUCT_FIELDS)
async def test_an_escaped_backslash_is_not_a_nul(client: InMemoryGrpc, method: str, field: str) -> None:
    for config in structs_with(r"\u0000 \\u0000"):
        await client.call(method, good(method, **{field: config}))


@pytest.mark.parametrize(("method", "field"), STRUCT_FIELDS)
async def test_a_config_has_at_most_64_kib(client: InMemoryGrpc, method: str, field: str) -> None:
    around = len('{"k": ""}')
    for letter, size in (("a", 1), ("é", 2), ("🦆", 4)):
        max_length = (mapping.MAX_CONFIG_BYTES - around) // size
        config = Struct()
        config.update({"k": letter * max_length})
        await client.call(method, good(method, **{field: config}))
        config.update({"k": letter * (max_length + 1)})
        await assert_field_is_reported(client, method, field, good(method, **{field: config}))


# --- tokens of ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["x", "é", "AAAA", "A" * 8000, "=", "\n"])
@pytest.mark.parametrize("method", ["ListIntegrations", "ListHealthChecks", "ListWebhookEvents"])
async def test_a_forged_page_token_is_reported(client: InMemoryGrpc, method: str, token: str) -> None:
    await assert_field_is_reported(client, method, "page_token", good(method, page_token=token))


@pytest.mark.parametrize("token", ["x", "é", "AAAA", "A" * 8000, "=", "\n"])
async def test_a_forged_cursor_is_reported(client: InMemoryGrpc, token: str) -> None:
    await assert_field_is_reported(client, "WatchIntegrations", "cursor", good("WatchIntegrations", cursor=token))


async def test_another_users_page_token_is_rejected(client: InMemoryGrpc, system: FakeSystem) -> None:
    await system.connect_account("second")
    first = await client.call("ListIntegrations", good("ListIntegrations", page_size=1))
    request = good("ListIntegrations", user_id=EVE, page_token=first.next_page_token)
    await assert_field_is_reported(client, "ListIntegrations", "page_token", request)


async def test_each_problem_of_a_state_has_its_own_reason(client: InMemoryGrpc, system: FakeSystem) -> None:
    system.add_provider("other")
    used, unused = (await system.begin()).state, (await system.begin()).state
    await system.call_back(used)
    for state, changes, code, reason in (
        ("forged", {}, grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID"),
        (unused, {"integration_type": "other"}, grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID"),
        (used, {"code": "another"}, grpc.StatusCode.FAILED_PRECONDITION, "STATE_USED"),
        (unused, {"user_id": "eve"}, grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH"),
    ):
        refused = await refusal(client, "HandleCallback", good("HandleCallback", state=state, **changes))
        assert (refused.code, refused.reason) == (code, reason)

    system.clock.advance((await system.begin()).expire_time - system.clock())
    refused = await refusal(client, "HandleCallback", good("HandleCallback", state=unused))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_EXPIRED")


async def test_a_forged_confirmation_token_is_reported(client: InMemoryGrpc) -> None:
    refused = await refusal(client, "ConfirmConnection", good("ConfirmConnection"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CONFIRMATION_INVALID")


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["user_id", "status", "config.k", "", "*", "a\0b", "p" * 20_000, "🦆"])
@pytest.mark.parametrize(("method", "field"), MASK_FIELDS)
async def test_a_mask_names_only_fields_that_can_be_updated(
    client: InMemoryGrpc, method: str, field: str, path: str
) -> None:
    request = good(method, name="new")
    request.update_mask.paths.extend(["name", path])
    await assert_field_is_reported(client, method, field, request)
    assert len((await refusal(client, method, request)).message) < 1000


async def test_is_active_cannot_be_cleared(client: InMemoryGrpc) -> None:
    request = good("UpdateIntegration")
    request.update_mask.paths.append("is_active")
    await assert_field_is_reported(client, "UpdateIntegration", "is_active", request)


# --- large responses --------------------------------------------------------------------------------------------------

# Together each has more than a message may, and needs several pages.
LARGE: dict[str, tuple[dict[str, Any], int]] = {
    "texts": ({"k": "x" * 60_000}, 80),
    "numbers, which are long in protobuf": ({"k": [1] * 13_000}, 30),
    "many nulls": ({"k": [None] * 10_000}, 80),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "rows"),
    LARGE.values(),
    ids=LARGE.keys(),
)
async def test_a_page_fits_into_a_message(client: InMemoryGrpc, content: dict[str, Any], rows: int) -> None:
    config = Struct()
    config.update(content)
    scopes = [f"{number:0255}" for number in range(100)]
    for _ in range(rows):
        await client.call("Connect", good("Connect", config=config, scopes=scopes))
    pages, seen, request = 0, [], good("ListIntegrations", page_size=200)
    while True:
        page = await client.call("ListIntegrations", request)
        assert page.ByteSize() < 4 * 1024 * 1024
        pages += 1
        seen += [row.integration_id for row in page.integrations]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert pages > 1
    assert len(seen) == len(set(seen)) == rows + 1


# --- whose it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [method for method, field, _ in NUMBER_FIELDS if field == "integration_id"])
async def test_a_foreign_and_a_missing_integration_have_the_same_response(
    client: InMemoryGrpc, system: FakeSystem, method: str
) -> None:
    mine = (await system.connect_key()) if method == "ConnectWithApiKey" else system.row(1)
    assert mine.user_id == ADA
    not_yours = await refusal(client, method, good(method, user_id=EVE, integration_id=mine.integration_id))
    not_there = await refusal(client, method, good(method, user_id=EVE, integration_id=UNKNOWN_INTEGRATION_ID))
    assert (not_yours.code, not_yours.reason) == (grpc.StatusCode.NOT_FOUND, "INTEGRATION_NOT_FOUND")
    assert not_yours.wire == not_there.wire


# --- anything ------------------------------------------------------------------------------------------------------

HOSTILE_TEXTS = st.one_of(st.sampled_from(["", "ada", "fake", "fake_key", "read"]), st.text(max_size=200))
NUMBERS = {"int64": st.integers(-(2**63), 2**63 - 1), "int32": st.integers(-(2**31), 2**31 - 1)}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


async def code_of(client: InMemoryGrpc, method: str, request: Any) -> grpc.StatusCode:
    try:
        await client.call(method, request)
    except RpcError as refused:
        return refused.code
    return grpc.StatusCode.OK


def fill(data: st.DataObject, message: Any) -> None:
    """Set some of the fields to any value that protobuf can encode."""
    for field in message.DESCRIPTOR.fields:
        if not data.draw(st.booleans(), label=field.name):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            texts = st.text(max_size=20)
            getattr(message, field.name).update(data.draw(st.dictionaries(texts, texts, max_size=3), label=field.name))
        elif field.message_type is not None and field.is_repeated:
            fill(data, getattr(message, field.name).add())
        elif field.message_type is None:
            value = data.draw(_any_value(field), label=field.name)
            if field.is_repeated:
                getattr(message, field.name).extend(value)
            else:
                setattr(message, field.name, value)
        elif field.message_type.full_name == "google.protobuf.Struct":
            getattr(message, field.name).update(data.draw(st.dictionaries(st.text(max_size=5), JSON, max_size=3)))
        elif field.is_repeated:
            fill(data, getattr(message, field.name).add())
        else:
            fill(data, getattr(message, field.name))


def _any_value(field: Any) -> st.SearchStrategy[Any]:
    one: st.SearchStrategy[Any]
    if field.type == field.TYPE_BYTES:
        one = st.binary(max_size=200)
    elif field.cpp_type == field.CPPTYPE_STRING:
        one = HOSTILE_TEXTS
    elif field.cpp_type == field.CPPTYPE_BOOL:
        one = st.booleans()
    else:
        small = st.integers(0, 3)
        one = small | NUMBERS["int64" if field.cpp_type == field.CPPTYPE_INT64 else "int32"]
    return st.lists(one, max_size=3) if field.is_repeated else one


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_request_causes_an_internal_error(method: str, data: st.DataObject) -> None:
    await request_anything(method, data)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_none_of_many_requests_causes_an_internal_error(method: str, data: st.DataObject) -> None:
    await request_anything(method, data)


async def request_anything(method: str, data: st.DataObject) -> None:
    system = FakeSystem()
    await system.connect()
    request = good(method)
    fill(data, request)
    assert await code_of(client_of(system), method, request) not in INTERNAL_ERRORS
