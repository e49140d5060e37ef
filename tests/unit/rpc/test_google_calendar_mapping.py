"""Events and queries of requests. Each error names its field."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.domain.errors import InvalidField
from integration_server.rpc.google_calendar_mapping import decode_event, decode_event_query, decode_instance_query
from integration_server.service.calendar.google_calendar import WRITABLE
from integrations.v1 import google_calendar_pb2 as pb

# What Google stores, or a caller made of it, and a write of the field would not pass.
NOT_WRITABLE: dict[str, Any] = {
    "summary": {"summary": "s" * 1025},
    "description": {"description": "d" * 8193},
    "location": {"location": "a\0b"},
    "start": {"start": pb.EventTime(date="2026-02-30")},
    "end": {"end": pb.EventTime(time_zone="../etc", date="2026-03-28")},
    "attendees": {"attendees": [pb.Attendee(email="not an address")]},
    "recurrence": {"recurrence": ["X-GOOGLE:1"]},
    "reminders": {"reminders": pb.Reminders(overrides=[pb.Reminder(minutes=-1)])},
    "status": {"status": 77},
    "transparency": {"transparency": 9},
    "visibility": {"visibility": 9},
    "extended_properties": {"extended_properties": pb.ExtendedProperties(private={"n" * 45: "v"})},
}


def test_every_writable_field_has_a_sample() -> None:
    assert NOT_WRITABLE.keys() == WRITABLE


@pytest.mark.parametrize("invalid", NOT_WRITABLE)
def test_an_update_checks_only_the_fields_of_its_mask(invalid: str) -> None:
    event = pb.Event(event_id="abcde", **NOT_WRITABLE[invalid])
    assert decode_event(event, WRITABLE - {invalid}).event_id == "abcde"
    with pytest.raises(InvalidField) as refused:  # the negative control: the mask names the field
        decode_event(event, {invalid})
    assert refused.value.field.startswith(f"event.{invalid}")


@pytest.mark.parametrize("name", sorted(WRITABLE))
def test_an_event_has_the_fields_of_the_mask_only(name: str) -> None:
    event = pb.Event(
        summary="Cut",
        description="Short",
        location="Shop",
        start=pb.EventTime(date="2026-03-28"),
        end=pb.EventTime(date="2026-03-29"),
        attendees=[pb.Attendee(display_name="Hidden")],
        attendees_omitted=True,
        recurrence=["RRULE:FREQ=DAILY"],
        reminders=pb.Reminders(use_default=True),
        status=pb.EVENT_STATUS_TENTATIVE,
        transparency=pb.EVENT_TRANSPARENCY_TRANSPARENT,
        visibility=pb.EVENT_VISIBILITY_PUBLIC,
        extended_properties=pb.ExtendedProperties(shared={"a": "b"}),
    )
    decoded = decode_event(event, {name})
    assert [other for other in sorted(WRITABLE) if getattr(decoded, other)] == [name]
    assert decoded.attendees_omitted == (name == "attendees")


@pytest.mark.parametrize(
    ("properties", "field"),
    [
        (pb.ExtendedProperties(private={"": "v"}), "event.extended_properties.private"),
        (pb.ExtendedProperties(shared={"n": "v" * 1025}), "event.extended_properties.shared"),
        (pb.ExtendedProperties(shared={"n": "\0"}), "event.extended_properties.shared"),
        (
            pb.ExtendedProperties(
                private={str(number): "" for number in range(200)}, shared={str(number): "" for number in range(101)}
            ),
            "event.extended_properties",
        ),
    ],
    ids=["no name", "long value", "NUL", "too many"],
)
def test_extended_properties_that_google_would_cut_are_refused(properties: pb.ExtendedProperties, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        decode_event(pb.Event(extended_properties=properties), {"extended_properties"})
    assert refused.value.field == field


@pytest.mark.parametrize("constraint", ["crm=42", "crm=", "note=a=b", "n=two\nlines", "name=\u30e6\u30fc\u30b6"])
def test_a_property_filter_is_a_name_and_any_value(constraint: str) -> None:
    query = decode_event_query(pb.ListEventsRequest(private_extended_property=[constraint]))
    assert query.private_extended_property == [constraint]


@pytest.mark.parametrize("constraint", ["", "crm", "=42", "n=" + "v" * 1068, "n=\0"])
@pytest.mark.parametrize("field", ["private_extended_property", "shared_extended_property"])
def test_another_property_filter_is_refused(field: str, constraint: str) -> None:
    request = pb.ListEventsRequest(**{field: ["a=b", constraint]})  # type: ignore[arg-type]
    with pytest.raises(InvalidField) as refused:
        decode_event_query(request)
    assert refused.value.field == f"{field}[1]"


def test_property_filters_are_bounded() -> None:
    with pytest.raises(InvalidField, match="maximum is 10"):
        decode_event_query(pb.ListEventsRequest(shared_extended_property=["a=b"] * 11))


def test_the_original_start_of_an_instance_is_a_day_or_a_time() -> None:
    for given, is_day in ((pb.EventTime(date="2026-03-28"), True), (pb.EventTime(date_time=Timestamp()), False)):
        query = decode_instance_query(pb.ListEventInstancesRequest(original_start_time=given))
        assert query.original_start_time is not None
        assert query.original_start_time.is_day is is_day
    with pytest.raises(InvalidField) as refused:
        decode_instance_query(pb.ListEventInstancesRequest(original_start_time=pb.EventTime()))
    assert refused.value.field == "original_start_time"
