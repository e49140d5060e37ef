"""A request is measured on the wire: bytes, fields at all levels, and depth; each error names the field."""

from typing import Any

import pytest
from google.api.distribution_pb2 import Distribution
from google.protobuf.descriptor_pb2 import SourceCodeInfo
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from integration_server.domain.errors import InvalidField
from integration_server.domain.request_limits import RequestLimits, RequestMeter
from integration_server.rpc.methods import describe_method, request_meter
from integrations.v1 import google_calendar_pb2, integration_service_pb2, operator_service_pb2
from integrations.v1 import integration_service_pb2 as pb

SERVICES = (
    integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"],
    google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"],
    operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"],
)
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]


def meter(request: Any, **limits: Any) -> RequestMeter:
    return request_meter(request.DESCRIPTOR, RequestLimits(**{"max_bytes": 1024 * 1024, **limits}))


def error_of(request: Any, **limits: Any) -> tuple[str, str]:
    with pytest.raises(InvalidField) as refused:
        list(meter(request, **limits).measure(request.SerializeToString()))
    return refused.value.field, refused.value.problem


def struct(**values: Any) -> Struct:
    built = Struct()
    built.update(values)
    return built


def nested(levels: int, *, lists: bool = False) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value] if lists else {"k": value}
    return value


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", METHODS)
def test_every_rpc_has_a_small_limit_beside_its_bulk_field(path: str) -> None:
    method = describe_method(path)
    assert method.request_limits.max_bytes <= 256 * 1024
    request_meter(method.request_class.DESCRIPTOR, method.request_limits)  # the bulk field exists
    if method.request_limits.bulk_field:
        field: Any = method.request_class.DESCRIPTOR.fields_by_name[method.request_limits.bulk_field]
        assert (field.type, field.is_repeated) == (field.TYPE_BYTES, False)


def test_limits_are_read_from_the_contract() -> None:
    calls = describe_method("/integrations.v1.IntegrationService/CallProvider").request_limits
    assert (calls.max_bytes, calls.bulk_field) == (256 * 1024, "body")
    assert describe_method("/integrations.v1.IntegrationService/GetIntegration").request_limits == RequestLimits()


def test_a_bulk_field_must_exist() -> None:
    with pytest.raises(ValueError, match="no field nobody"):
        meter(pb.CallProviderRequest(), bulk_field="nobody")


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_a_request_may_have_its_maximum_of_bytes_and_not_one_more() -> None:
    request = pb.GetIntegrationRequest(user_id="x" * 100)
    size = request.ByteSize()
    list(meter(request, max_bytes=size).measure(request.SerializeToString()))
    assert error_of(request, max_bytes=size - 1) == ("request", f"has {size} bytes; the maximum is {size - 1}")


def test_the_bulk_field_does_not_count_and_everything_else_does() -> None:
    request = pb.CallProviderRequest(user_id="ada", body=b"x" * 100_000)
    list(meter(request, max_bytes=100, bulk_field="body").measure(request.SerializeToString()))
    request.headers.add(name="n", value="v" * 200)
    field, problem = error_of(request, max_bytes=100, bulk_field="body")
    assert (field, problem.endswith("besides body; the maximum is 100")) == ("request", True)
    assert error_of(request, max_bytes=100)[0] == "request"


def test_a_field_with_the_number_of_the_bulk_field_in_another_message_counts() -> None:
    inner = pb.QueryParameter(value="v").SerializeToString() + b"\x3a\x7f" + b"x" * 127  # an unknown field 7
    raw = b"\x2a\x84\x01" + inner + b"\x3a\x03abc"
    with pytest.raises(InvalidField, match="besides body"):
        list(meter(pb.CallProviderRequest(), max_bytes=100, bulk_field="body").measure(raw))


# --- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ConnectRequest(scopes=[""] * 101), "scopes"),
        (pb.ConnectRequest(config=struct(a=[None] * 100)), "config"),
        (pb.ConnectRequest(config=struct(a=[{} for _ in range(50)])), "config"),
        (pb.ConnectRequest(config=struct(**{str(number): 1 for number in range(26)})), "config"),
        (pb.UpdateIntegrationRequest(update_mask=FieldMask(paths=["name"] * 101)), "update_mask"),
        (pb.CallProviderRequest(headers=[pb.HttpHeader()] * 101), "headers"),
        (pb.CallProviderRequest(headers=[pb.HttpHeader(name="n", value="v")] * 34), "headers.name"),
        (
            google_calendar_pb2.CreateEventRequest(
                event=google_calendar_pb2.Event(attendees=[google_calendar_pb2.Attendee()] * 100)
            ),
            "event.attendees",
        ),
    ],
    ids=["scopes", "list", "structs", "map", "mask", "messages", "texts", "nested"],
)
def test_fields_count_at_all_levels(request_: Any, field: str) -> None:
    found, problem = error_of(request_, max_fields=100)
    assert (found, problem) == (field, "has too many fields and entries; a request has at most 100")
    list(meter(request_).measure(request_.SerializeToString()))


def test_unknown_fields_and_repeated_single_fields_count() -> None:
    checked = meter(pb.ConnectRequest(), max_fields=100)
    for unit in (b"\xf8\x7f\x00", b"\x0a\x00", b"\xfa\x7f\x00", b"\x40\x00"):
        list(checked.measure(unit * 100))
        with pytest.raises(InvalidField, match="too many"):
            list(checked.measure(unit * 101))


def test_packed_numbers_count() -> None:
    location = SourceCodeInfo(location=[SourceCodeInfo.Location(path=[1] * 97)])  # no request has any
    list(meter(location, max_fields=100).measure(location.SerializeToString()))
    location.location[0].path.extend([1, 1, 1, 1])
    assert error_of(location, max_fields=100)[1] == "has too many fields and entries; a request has at most 100"


@pytest.mark.parametrize("number", [1, 2**14, 2**35, 2**63 - 1])
def test_a_packed_number_counts_once_whatever_its_size(number: int) -> None:
    request = pb.WatchCredentialsRequest(integration_ids=[number] * 99, cursor="c")
    list(meter(request, max_fields=101).measure(request.SerializeToString()))  # the field, its entries, and the cursor
    request.integration_ids.append(number)
    assert error_of(request, max_fields=101)[0] == "cursor"


def test_the_largest_request_of_a_stream_of_credentials_is_accepted() -> None:
    method = describe_method("/integrations.v1.IntegrationService/WatchCredentials")
    request = pb.WatchCredentialsRequest(
        integration_ids=[2**63 - 1 - number for number in range(5000)], cursor="c" * 200
    )
    list(request_meter(method.request_class.DESCRIPTOR, method.request_limits).measure(request.SerializeToString()))


def test_packed_numbers_of_a_fixed_size_count() -> None:
    bounds = Distribution.BucketOptions.Explicit(bounds=[0.5] * 99)  # no request has any
    list(meter(bounds, max_fields=100).measure(bounds.SerializeToString()))
    bounds.bounds.append(0.5)
    assert error_of(bounds, max_fields=100)[1] == "has too many fields and entries; a request has at most 100"


# --- depth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [False, True])
def test_nesting_is_limited(lists: bool) -> None:
    list(
        meter(pb.ConnectRequest()).measure(
            pb.ConnectRequest(config=struct(a=nested(20, lists=lists))).SerializeToString()
        )
    )
    field, problem = error_of(pb.ConnectRequest(config=struct(a=nested(32, lists=lists))))
    assert (field, problem) == ("config", "is nested deeper than 64 messages")


def test_the_deepest_accepted_request_can_be_parsed() -> None:
    """protobuf's own limit is higher, and has an error without a field."""
    request = pb.ConnectRequest(config=struct(a=nested(20)))
    assert pb.ConnectRequest.FromString(request.SerializeToString()) == request


# --- requests that need not be measured ------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"max_depth": 5}, {"max_fields": 9}, {"max_bytes": 11}], ids=str)
def test_a_request_of_the_harmless_size_exceeds_no_limit(limits: dict[str, int]) -> None:
    checked, is_exceeded = meter(pb.ConnectRequest(), **limits), False
    for levels in range(8):
        lists = nested(levels, lists=True)
        for config in ({}, {"a": lists}, {"": lists, "b": lists}):
            for scopes in range(12):
                raw = pb.ConnectRequest(config=struct(**config), scopes=[""] * scopes).SerializeToString()
                try:
                    list(checked.measure(raw))
                except InvalidField:
                    is_exceeded = True
                    assert len(raw) > checked.harmless_size
    assert is_exceeded


@given(st.binary(max_size=12))
def test_no_bytes_of_the_harmless_size_exceed_a_limit(raw: bytes) -> None:
    checked = meter(pb.ConnectRequest(), max_bytes=12, max_fields=12, max_depth=6)
    assert checked.harmless_size == 12
    problems = set[str]()
    try:
        list(checked.measure(raw))
    except InvalidField as error:
        problems.add(error.problem)
    assert problems <= {"cannot be decoded"}  # which the parser finds too, or ignores: a group


# --- malformed bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"\x08",  # a tag without a value
        b"\x0a\x05ada",  # a text that is cut
        b"\x0a\xff\xff\xff\xff\x0f",  # a length of 4 GiB
        b"\xff" * 20,
        b"\x40" + b"\xff" * 10,  # a number of more than 64 bits
        b"\x09\x00",  # eight bytes that are cut
        b"\x0d\x00",  # four
        b"\x0b\x0c",  # a group
        b"\x0c",
        b"\x0f",  # no wire type
        b"\x3a\x02\x0a\x05",  # a message whose field is longer than the message
        b"\x3a\x02\x0a\x01ab",
    ],
)
def test_malformed_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidField, match="request cannot be decoded"):
        list(meter(pb.ConnectRequest()).measure(raw))


@given(st.binary(max_size=40))
def test_whatever_protobuf_parses_is_measured_without_another_error(raw: bytes) -> None:
    try:
        list(meter(pb.ConnectRequest()).measure(raw))
    except InvalidField:
        # Groups are the only thing that protobuf accepts and the contract cannot have.
        try:
            pb.ConnectRequest.FromString(raw)
        except DecodeError:
            return
        assert any(byte & 7 in {3, 4} for byte in raw)


@given(st.lists(st.text(max_size=5), max_size=5), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans())
def test_every_encoded_request_is_accepted(texts: list[str], number: int, value: float, flag: bool) -> None:
    connect = pb.ConnectRequest(scopes=texts, integration_id=number, config=struct(value=value, texts=texts))
    update = pb.UpdateIntegrationRequest(integration_id=number, is_active=flag, update_mask=FieldMask(paths=texts))
    for request in (connect, update):
        list(meter(request).measure(request.SerializeToString()))


def test_a_large_request_is_measured_in_steps() -> None:
    raw = pb.ConnectRequest(config=struct(values=[{}] * 4_900)).SerializeToString()
    assert len(list(meter(pb.ConnectRequest()).measure(raw))) >= 9
    assert not list(meter(pb.ConnectRequest()).measure(pb.ConnectRequest(user_id="ada").SerializeToString()))
