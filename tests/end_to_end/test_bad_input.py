"""Invalid requests: each has its status, reason and field, on both databases, and none is INTERNAL.

A test sends all cases of one kind and compares them as a whole, so that a failure shows all differences.
"""

import math
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from integration_server.storage.schema import migrate
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.rpc_errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    RpcError,
    expect_rpc_error,
    invalid,
)
from tests.end_to_end.system import APP_CALLBACK, KEY, RETURN_URL, System, query_of, run_system

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]

HUGE = 2**63 - 1

METHODS: dict[str, Any] = {
    "Connect": pb.ConnectRequest(user_id="ada", integration_type="sandbox"),
    "HandleCallback": pb.HandleCallbackRequest(state="s", code="c"),
    "ConfirmConnection": pb.ConfirmConnectionRequest(confirmation_token="t", user_id="ada"),
    "ConnectWithApiKey": pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="sandbox_api_key", api_key="k"),
    "ListIntegrations": pb.ListIntegrationsRequest(user_id="ada"),
    "GetIntegration": pb.GetIntegrationRequest(user_id="ada", integration_id=1),
    "UpdateIntegration": pb.UpdateIntegrationRequest(user_id="ada", integration_id=1),
    "DisconnectIntegration": pb.DisconnectIntegrationRequest(user_id="ada", integration_id=1),
    "CheckAllHealth": pb.CheckAllHealthRequest(user_id="ada"),
    "CheckHealth": pb.CheckHealthRequest(user_id="ada", integration_id=1),
    "ListHealthChecks": pb.ListHealthChecksRequest(user_id="ada", integration_id=1),
    "RefreshToken": pb.RefreshTokenRequest(user_id="ada", integration_id=1),
    "ListIntegrationTypes": pb.ListIntegrationTypesRequest(),
    "GetCredentials": pb.GetCredentialsRequest(user_id="ada", integration_id=1),
    "WatchCredentials": pb.WatchCredentialsRequest(user_id="ada", integration_ids=[1]),
    "ReceiveWebhook": pb.ReceiveWebhookRequest(
        integration_type="sandbox", endpoint="app", url="https://x.example", method="POST"
    ),
    "ListWebhookEvents": pb.ListWebhookEventsRequest(user_id="ada", integration_id=1, consumer="mail"),
    "AckWebhookEvents": pb.AckWebhookEventsRequest(user_id="ada", integration_id=1, consumer="mail", through_number=1),
    "GetWebhookEndpoint": pb.GetWebhookEndpointRequest(user_id="ada", integration_id=1),
    "SetWebhookSecret": pb.SetWebhookSecretRequest(user_id="ada", integration_id=1),
    "WatchIntegrations": pb.WatchIntegrationsRequest(user_id="ada"),
    "CallProvider": pb.CallProviderRequest(user_id="ada", integration_id=1, method="GET", path="/userinfo"),
    "StreamProvider": pb.StreamProviderRequest(user_id="ada", integration_id=1, method="GET", path="/userinfo"),
}
"""One request that has the right form, for each method that takes any."""


def with_fields(method: str, /, **fields: Any) -> Any:
    """The method's valid request with other fields."""
    request = type(METHODS[method])()
    request.CopyFrom(METHODS[method])
    request.MergeFrom(type(request)(**fields))
    return request


async def responses_to(system: System, cases: dict[str, tuple[str, Message]]) -> dict[str, RpcError]:
    """The error of each request, by the name of the case."""
    return {
        name: await expect_rpc_error(first_response(call_of(system, method, request)))
        for name, (method, request) in cases.items()
    }


def call_of(system: System, method: str, request: Message) -> Any:
    """The call, with a stream of this one request if the method takes a stream."""
    make: Any = getattr(system.service, method)
    return make(iter([request]) if isinstance(make, grpc.aio.StreamStreamMultiCallable) else request)


async def first_response(call: Any) -> Any:
    """The response, or the first response of a stream."""
    return await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall | grpc.aio.StreamStreamCall) else call)


def fields_of(method: str, *kinds: int) -> Iterator[Any]:
    """The fields of these types in the method's request."""
    return (field for field in METHODS[method].DESCRIPTOR.fields if field.type in kinds)


async def test_every_rpc_with_request_fields_has_a_case() -> None:
    methods = pb.DESCRIPTOR.services_by_name["IntegrationService"].methods
    # Each request of a batch is one of `GetCredentials`, with its own result: unit/rpc/test_batch_credentials.py.
    assert METHODS.keys() | {"BatchGetCredentials"} == {method.name for method in methods if method.input_type.fields}


# --- user, integration and type --------------------------------------------------------------------------------------


async def test_user_id_has_1_to_128_characters(system: System) -> None:
    wrong = {"empty": "", "129 characters": "ü" * 129, "NUL": "ada\0"}
    cases = {}
    for method in METHODS.keys() - {"HandleCallback", "ReceiveWebhook", "ListIntegrationTypes"}:
        for name, user_id in wrong.items():
            if method in {"WatchIntegrations", "WatchCredentials"} and not user_id:
                continue  # a service may watch all users
            request = with_fields(method)
            request.user_id = user_id
            cases[f"{method}, {name}"] = (method, request)
    assert await responses_to(system, cases) == dict.fromkeys(cases, invalid("user_id"))

    connect_response = await system.begin(redirect_uri=APP_CALLBACK)
    query = query_of(await system.decide(connect_response))
    named = pb.HandleCallbackRequest(code=query["code"], state=query["state"], iss=query["iss"], user_id="x" * 129)
    assert await expect_rpc_error(system.service.HandleCallback(named)) == invalid("user_id")

    longest = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ü" * 128))
    assert not longest.integrations
    assert await system.connect("ü" * 128)


async def test_integration_id_is_positive(system: System) -> None:
    methods = [method for method in METHODS if "integration_id" in METHODS[method].DESCRIPTOR.fields_by_name]
    optional = {"Connect", "ConnectWithApiKey"}
    cases, expected = {}, {}
    for method in methods:
        for integration_id in (-1, -HUGE - 1, 0, HUGE):
            if integration_id == 0 and method in optional:
                continue
            name = f"{method}, {integration_id}"
            request = with_fields(method)
            request.integration_id = integration_id
            cases[name] = (method, request)
            expected[name] = NOT_FOUND if integration_id == HUGE else invalid("integration_id")
    assert await responses_to(system, cases) == expected


async def test_integration_type_must_be_known_and_have_the_right_auth_method(system: System) -> None:
    unknown = RpcError(INVALID_ARGUMENT, "UNKNOWN_INTEGRATION_TYPE")
    methods = ("Connect", "ConnectWithApiKey", "ListIntegrations", "WatchIntegrations")
    cases = {method: (method, with_fields(method, integration_type="no_such_type")) for method in methods}
    assert await responses_to(system, cases) == dict.fromkeys(cases, unknown)

    cases = {
        "OAuth by key": ("ConnectWithApiKey", with_fields("ConnectWithApiKey", integration_type="sandbox")),
        "key by OAuth": ("Connect", with_fields("Connect", integration_type="sandbox_api_key")),
        "none": ("Connect", pb.ConnectRequest(user_id="ada")),
    }
    assert await responses_to(system, cases) == dict.fromkeys(cases, invalid("integration_type"))

    not_configured = await expect_rpc_error(system.begin(integration_type="google_calendar"))
    assert not_configured == RpcError(FAILED_PRECONDITION, "PROVIDER_NOT_CONFIGURED")
    assert "GOOGLE_CALENDAR_CLIENT_ID" in not_configured.message

    integration_id = await system.connect()
    request = with_fields("ConnectWithApiKey", integration_id=integration_id)
    assert await expect_rpc_error(system.service.ConnectWithApiKey(request)) == invalid("integration_type")


# --- texts -----------------------------------------------------------------------------------------------------------


async def test_a_nul_character_in_a_text_field_is_rejected_with_its_field(system: System) -> None:
    cases, expected = {}, {}
    for method in METHODS:
        for field in fields_of(method, FieldDescriptor.TYPE_STRING):
            name = f"{method}.{field.name}"
            request = with_fields(method)
            if field.is_repeated:
                getattr(request, field.name).append("a\0b")
            else:
                setattr(request, field.name, "a\0b")
            cases[name] = (method, request)
            expected[name] = invalid(f"{field.name}[0]" if field.is_repeated else field.name)
    assert len(cases) > 30
    assert await responses_to(system, cases) == expected


async def test_a_percent_encoded_nul_in_a_callback_is_rejected(system: System) -> None:
    request = with_fields("HandleCallback", query="realmId=1%00")
    assert await expect_rpc_error(system.service.HandleCallback(request)) == invalid("query")
    for query in ("state=a%00b&code=c", "state=s&code=c&error=a%00b", "state=s&code=c&x=%00"):
        response = await system.browser.get(f"{system.sidecar_url}/api/v1/integrations/callback/sandbox?{query}")
        assert (response.status_code, response.json()["reason"]) == (400, "INVALID_FIELD"), query


async def test_text_fields_have_a_maximum_length(system: System) -> None:
    cases = {
        "name": ("Connect", with_fields("Connect", name="n" * 256)),
        "scopes[0]": ("Connect", with_fields("Connect", scopes=["s" * 256])),
        "scopes[1]": ("Connect", with_fields("Connect", scopes=["read", "two words"])),
        "scopes": ("Connect", with_fields("Connect", scopes=[f"s{number}" for number in range(101)])),
        "redirect_uri": ("Connect", with_fields("Connect", redirect_uri="https://" + "a" * 3000)),
        "state": ("HandleCallback", with_fields("HandleCallback", state="s" * 10_000)),
        "code": ("HandleCallback", with_fields("HandleCallback", code="c" * 10_000)),
        "confirmation_token": (
            "ConfirmConnection",
            with_fields("ConfirmConnection", confirmation_token="t" * 10_000),
        ),
        "api_key": ("ConnectWithApiKey", with_fields("ConnectWithApiKey", api_key="k" * 4097)),
        "api_secret": ("ConnectWithApiKey", with_fields("ConnectWithApiKey", api_secret="k\r\nX-Evil: 1")),
        "page_token": ("ListIntegrations", with_fields("ListIntegrations", page_token="p" * 10_000)),
        "cursor": ("WatchIntegrations", with_fields("WatchIntegrations", cursor="c" * 10_000)),
        "consumer": ("ListWebhookEvents", with_fields("ListWebhookEvents", consumer="c" * 65)),
        "endpoint": ("ReceiveWebhook", with_fields("ReceiveWebhook", endpoint="e" * 256)),
        "method": ("ReceiveWebhook", with_fields("ReceiveWebhook", method="M" * 17)),
        "url": ("ReceiveWebhook", with_fields("ReceiveWebhook", url="https://x.example/" + "u" * 16 * 1024)),
    }
    assert await responses_to(system, cases) == {field: invalid(field) for field in cases}


async def test_api_key_is_required(system: System) -> None:
    request = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="sandbox_api_key")
    assert await expect_rpc_error(system.service.ConnectWithApiKey(request)) == invalid("api_key")


# --- config ----------------------------------------------------------------------------------------------------------


def struct(**values: Any) -> Struct:
    """A config as a Struct."""
    built = Struct()
    built.update(values)
    return built


async def test_config_has_at_most_64_kib_of_json(system: System) -> None:
    integration_id = await system.connect()
    wrong = {
        "over 64 KiB": struct(text="x" * 64 * 1024),
        "over 64 KiB in characters of more bytes": struct(text="ü" * 33 * 1024),
        "NaN": struct(number=math.nan),
        "infinity": struct(list=[{"deep": -math.inf}]),
        "NUL": struct(text="a\0b"),
        "NUL in a key": struct(**{"a\0b": 1}),
    }
    cases: dict[str, tuple[str, Message]] = {}
    for name, config in wrong.items():
        update = with_fields("UpdateIntegration", integration_id=integration_id, config=config)
        cases[f"Connect, {name}"] = ("Connect", with_fields("Connect", config=config))
        cases[f"ConnectWithApiKey, {name}"] = ("ConnectWithApiKey", with_fields("ConnectWithApiKey", config=config))
        cases[f"UpdateIntegration, {name}"] = ("UpdateIntegration", update)
    assert await responses_to(system, cases) == dict.fromkeys(cases, invalid("config"))
    assert not (await system.get(integration_id)).config

    strange = {"backslash": "\\u0000", "quote": '"', "emoji": "😀", "nested": {"list": [1.5, None, True]}, "": ""}
    for config in (struct(text="x" * (64 * 1024 - 20)), struct(**strange)):
        update = with_fields("UpdateIntegration", integration_id=integration_id, config=config)
        stored = await system.service.UpdateIntegration(update)
        assert stored.integration.config == config
        assert (await system.get(integration_id)).config == config


async def test_an_update_without_a_field_is_rejected(system: System) -> None:
    integration_id = await system.connect()

    def update(**fields: Any) -> tuple[str, Message]:
        return "UpdateIntegration", with_fields("UpdateIntegration", integration_id=integration_id, **fields)

    cases = {
        "unknown": update(update_mask=FieldMask(paths=["status"])),
        "NUL": update(update_mask=FieldMask(paths=["name\0"])),
    }
    assert await responses_to(system, cases) == dict.fromkeys(cases, invalid("update_mask"))
    cleared = {"is_active": update(update_mask=FieldMask(paths=["is_active"]))}
    assert await responses_to(system, cleared) == {"is_active": invalid("is_active")}


async def test_a_pending_integration_cannot_be_updated_or_used(system: System) -> None:
    which = {"integration_id": (await system.begin()).integration_id}
    methods = ("UpdateIntegration", "CheckHealth", "RefreshToken", "GetCredentials", "CallProvider")
    cases = {method: (method, with_fields(method, **which)) for method in methods}
    pending = RpcError(FAILED_PRECONDITION, "INTEGRATION_PENDING")
    assert await responses_to(system, cases) == dict.fromkeys(cases, pending)


async def test_min_ttl_must_be_a_valid_duration(system: System) -> None:
    integration_id = await system.connect()
    wrong = {
        "negative": Duration(seconds=-1),
        "negative nanos": Duration(nanos=-1),
        "too large": Duration(seconds=HUGE),
        "too many nanos": Duration(nanos=2_000_000_000),
    }
    cases = {
        name: ("GetCredentials", with_fields("GetCredentials", integration_id=integration_id, min_ttl=ttl))
        for name, ttl in wrong.items()
    }
    assert await responses_to(system, cases) == dict.fromkeys(cases, invalid("min_ttl"))


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_a_negative_page_size_is_rejected_and_a_large_one_is_reduced(system: System) -> None:
    await system.connect()
    for page_size in (-1, -(2**31)):
        request = with_fields("ListIntegrations", page_size=page_size)
        assert await expect_rpc_error(system.service.ListIntegrations(request)) == invalid("page_size")
    huge = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada", page_size=2**31 - 1))
    assert len(huge.integrations) == 1
    # 2⁶³-1 does not fit into the field: the wire format reads its lower half, which is -1.
    wire = pb.ListIntegrationsRequest(user_id="ada").SerializeToString() + b"\x18" + b"\xff" * 8 + b"\x7f"
    raw = system.raw("ListIntegrations")
    assert await expect_rpc_error(raw(wire)) == invalid("page_size")


async def test_a_page_token_is_valid_only_for_its_own_list(system: System) -> None:
    for account in ("ada", "grace"):
        await system.connect("ada", account=account)
        await system.connect("grace", account=account)

    async def token_for(user_id: str, integration_type: str = "") -> str:
        page = await system.service.ListIntegrations(
            pb.ListIntegrationsRequest(user_id=user_id, integration_type=integration_type, page_size=1)
        )
        assert page.next_page_token
        return page.next_page_token

    valid_token = await token_for("ada")
    middle = len(valid_token) // 2
    forged = {
        "made up": "abc",
        "not base64": "%%%",
        "not ASCII": "ü" * 40,
        "a number": "1",
        "altered": valid_token[:middle] + ("A" if valid_token[middle] != "A" else "B") + valid_token[middle + 1 :],
        "cut": valid_token[:-4],
        "longer": valid_token + "AAAA",
        "another user's": await token_for("grace"),
        "another list's": await token_for("ada", "sandbox"),
        "a state": (await system.begin()).state,
    }
    cases = {
        name: ("ListIntegrations", with_fields("ListIntegrations", page_token=token)) for name, token in forged.items()
    }
    assert await responses_to(system, cases) == dict.fromkeys(cases, invalid("page_token"))
    assert (
        await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada", page_token=valid_token))
    ).integrations


# --- redirect URIs and return URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "allowed"), [("redirect_uri", APP_CALLBACK), ("return_url", RETURN_URL)])
async def test_a_redirect_uri_must_equal_an_allowed_one(system: System, field: str, allowed: str) -> None:
    similar_urls = (
        allowed + "/",
        allowed[:-1],
        allowed.upper(),
        allowed.replace("https", "http"),
        allowed.replace("app.example", "app.example:443"),
        allowed.replace("app.example", "app.example.evil.example"),
        allowed.replace("app.example", "evil.example@app.example"),
        allowed + "#fragment",
        allowed + " ",
        "javascript:alert(1)",
        "//app.example/",
        "/",
    )
    refused = RpcError(INVALID_ARGUMENT, "REDIRECT_URI_NOT_ALLOWED", (field,))
    cases = {address: ("Connect", with_fields("Connect", **{field: address})) for address in similar_urls}
    assert await responses_to(system, cases) == dict.fromkeys(cases, refused)
    assert (await system.begin(**{field: allowed})).authorization_url


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_state_is_valid_once_unaltered_and_for_ten_minutes(system: System) -> None:
    connect_response = await system.begin(redirect_uri=APP_CALLBACK)
    query = query_of(await system.decide(connect_response))

    def callback(**fields: str) -> tuple[str, Message]:
        given = {"code": query["code"], "state": query["state"], "iss": query["iss"], **fields}
        return "HandleCallback", pb.HandleCallbackRequest(**given)

    state = query["state"]
    flips = range(0, len(state), 7)
    altered = {
        f"altered at {index}": state[:index] + ("A" if state[index] != "A" else "B") + state[index + 1 :]
        for index in flips
    }
    foreign = {
        "cut": state[:-1],
        "padded": state + "=",
        "made up": "state",
        "not ASCII": "stäte",
        "of another server": await state_of_another_server(system),
    }
    cases = {name: callback(state=value) for name, value in {**altered, **foreign}.items()}
    cases["of another type"] = callback(integration_type="google_calendar")
    cases["of no type"] = callback(integration_type="no_such_type")
    assert await responses_to(system, cases) == dict.fromkeys(cases, RpcError(INVALID_ARGUMENT, "STATE_INVALID"))

    assert await responses_to(system, {"none": callback(state="")}) == {"none": invalid("state")}
    assert await responses_to(system, {"no code": callback(code="")}) == {"no code": invalid("code")}

    system.clock.shift = timedelta(minutes=10)
    expire_access_token = RpcError(FAILED_PRECONDITION, "STATE_EXPIRED")
    assert await responses_to(system, {"expired": callback()}) == {"expired": expire_access_token}
    system.clock.shift = timedelta()
    assert not system.sandbox.token_calls

    method, request = callback(integration_type="sandbox")
    assert (await getattr(system.service, method)(request)).success
    used = RpcError(FAILED_PRECONDITION, "STATE_USED")
    assert await responses_to(system, {"used": callback(code="another")}) == {"used": used}


async def state_of_another_server(system: System) -> str:
    """A state encrypted with another key, for an attempt with the same id."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'other.db'}"
        await migrate(url)
        async with run_system(url, key=bytes(byte ^ 1 for byte in KEY)) as other:
            return (await other.begin()).state


async def test_the_error_for_a_rejected_code_does_not_contain_the_code(system: System) -> None:
    connect_response = await system.begin(redirect_uri=APP_CALLBACK)
    query = query_of(await system.decide(connect_response))
    request = pb.HandleCallbackRequest(code="a-made-up-code", state=query["state"], iss=query["iss"])
    refused = await expect_rpc_error(system.service.HandleCallback(request))
    assert refused == RpcError(FAILED_PRECONDITION, "PROVIDER_REJECTED")
    assert "made-up" not in refused.message


# --- malformed messages ----------------------------------------------------------------------------------------------


async def test_oversized_and_malformed_messages_are_rejected_and_the_server_continues(system: System) -> None:
    integration_id = await system.connect()
    large = pb.UpdateIntegrationRequest(user_id="ada", integration_id=integration_id, name="x" * 5 * 1024 * 1024)
    with pytest.raises(grpc.aio.AioRpcError) as too_large:
        await system.service.UpdateIntegration(large)
    assert too_large.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    raw = system.raw("GetIntegration")
    not_utf8 = b"\x12\x02\xff\xfe"
    for malformed in (b"\xff" * 32, b"\x08", b"\x12\x7fada", not_utf8):
        assert await expect_rpc_error(raw(malformed)) == invalid("request")

    unknown = system.raw("NoSuchMethod")
    with pytest.raises(grpc.aio.AioRpcError) as unknown_method_error:
        await unknown(b"")
    assert unknown_method_error.value.code() == grpc.StatusCode.UNIMPLEMENTED

    assert (await system.get(integration_id)).is_connected
