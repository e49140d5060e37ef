import datetime

from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from integrations.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_ORDER_UNSPECIFIED: _ClassVar[EventOrder]
    EVENT_ORDER_START_TIME: _ClassVar[EventOrder]
    EVENT_ORDER_UPDATE_TIME: _ClassVar[EventOrder]

class Notify(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOTIFY_UNSPECIFIED: _ClassVar[Notify]
    NOTIFY_ALL: _ClassVar[Notify]
    NOTIFY_EXTERNAL_ONLY: _ClassVar[Notify]
    NOTIFY_NONE: _ClassVar[Notify]

class EventTransparency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_TRANSPARENCY_UNSPECIFIED: _ClassVar[EventTransparency]
    EVENT_TRANSPARENCY_OPAQUE: _ClassVar[EventTransparency]
    EVENT_TRANSPARENCY_TRANSPARENT: _ClassVar[EventTransparency]

class EventVisibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_VISIBILITY_UNSPECIFIED: _ClassVar[EventVisibility]
    EVENT_VISIBILITY_DEFAULT: _ClassVar[EventVisibility]
    EVENT_VISIBILITY_PUBLIC: _ClassVar[EventVisibility]
    EVENT_VISIBILITY_PRIVATE: _ClassVar[EventVisibility]
    EVENT_VISIBILITY_CONFIDENTIAL: _ClassVar[EventVisibility]

class ResponseStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESPONSE_STATUS_UNSPECIFIED: _ClassVar[ResponseStatus]
    RESPONSE_STATUS_NEEDS_ACTION: _ClassVar[ResponseStatus]
    RESPONSE_STATUS_DECLINED: _ClassVar[ResponseStatus]
    RESPONSE_STATUS_TENTATIVE: _ClassVar[ResponseStatus]
    RESPONSE_STATUS_ACCEPTED: _ClassVar[ResponseStatus]

class EventStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_STATUS_UNSPECIFIED: _ClassVar[EventStatus]
    EVENT_STATUS_CONFIRMED: _ClassVar[EventStatus]
    EVENT_STATUS_TENTATIVE: _ClassVar[EventStatus]
    EVENT_STATUS_CANCELLED: _ClassVar[EventStatus]

class ReminderMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REMINDER_METHOD_UNSPECIFIED: _ClassVar[ReminderMethod]
    REMINDER_METHOD_POPUP: _ClassVar[ReminderMethod]
    REMINDER_METHOD_EMAIL: _ClassVar[ReminderMethod]
EVENT_ORDER_UNSPECIFIED: EventOrder
EVENT_ORDER_START_TIME: EventOrder
EVENT_ORDER_UPDATE_TIME: EventOrder
NOTIFY_UNSPECIFIED: Notify
NOTIFY_ALL: Notify
NOTIFY_EXTERNAL_ONLY: Notify
NOTIFY_NONE: Notify
EVENT_TRANSPARENCY_UNSPECIFIED: EventTransparency
EVENT_TRANSPARENCY_OPAQUE: EventTransparency
EVENT_TRANSPARENCY_TRANSPARENT: EventTransparency
EVENT_VISIBILITY_UNSPECIFIED: EventVisibility
EVENT_VISIBILITY_DEFAULT: EventVisibility
EVENT_VISIBILITY_PUBLIC: EventVisibility
EVENT_VISIBILITY_PRIVATE: EventVisibility
EVENT_VISIBILITY_CONFIDENTIAL: EventVisibility
RESPONSE_STATUS_UNSPECIFIED: ResponseStatus
RESPONSE_STATUS_NEEDS_ACTION: ResponseStatus
RESPONSE_STATUS_DECLINED: ResponseStatus
RESPONSE_STATUS_TENTATIVE: ResponseStatus
RESPONSE_STATUS_ACCEPTED: ResponseStatus
EVENT_STATUS_UNSPECIFIED: EventStatus
EVENT_STATUS_CONFIRMED: EventStatus
EVENT_STATUS_TENTATIVE: EventStatus
EVENT_STATUS_CANCELLED: EventStatus
REMINDER_METHOD_UNSPECIFIED: ReminderMethod
REMINDER_METHOD_POPUP: ReminderMethod
REMINDER_METHOD_EMAIL: ReminderMethod

class ListCalendarsRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "page_size", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    page_size: int
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCalendarsResponse(_message.Message):
    __slots__ = ("calendars", "next_page_token")
    CALENDARS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    calendars: _containers.RepeatedCompositeFieldContainer[Calendar]
    next_page_token: str
    def __init__(self, calendars: _Optional[_Iterable[_Union[Calendar, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Calendar(_message.Message):
    __slots__ = ("calendar_id", "summary", "description", "time_zone", "primary", "access_role")
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    ACCESS_ROLE_FIELD_NUMBER: _ClassVar[int]
    calendar_id: str
    summary: str
    description: str
    time_zone: str
    primary: bool
    access_role: str
    def __init__(self, calendar_id: _Optional[str] = ..., summary: _Optional[str] = ..., description: _Optional[str] = ..., time_zone: _Optional[str] = ..., primary: _Optional[bool] = ..., access_role: _Optional[str] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "calendar_id", "page_size", "page_token", "sync_token", "time_min", "time_max", "single_events", "order_by", "show_deleted", "updated_min", "i_cal_uid", "private_extended_property", "shared_extended_property")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SYNC_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_MIN_FIELD_NUMBER: _ClassVar[int]
    TIME_MAX_FIELD_NUMBER: _ClassVar[int]
    SINGLE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    SHOW_DELETED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_MIN_FIELD_NUMBER: _ClassVar[int]
    I_CAL_UID_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_EXTENDED_PROPERTY_FIELD_NUMBER: _ClassVar[int]
    SHARED_EXTENDED_PROPERTY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    calendar_id: str
    page_size: int
    page_token: str
    sync_token: str
    time_min: _timestamp_pb2.Timestamp
    time_max: _timestamp_pb2.Timestamp
    single_events: bool
    order_by: EventOrder
    show_deleted: bool
    updated_min: _timestamp_pb2.Timestamp
    i_cal_uid: str
    private_extended_property: _containers.RepeatedScalarFieldContainer[str]
    shared_extended_property: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., calendar_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., sync_token: _Optional[str] = ..., time_min: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., time_max: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., single_events: _Optional[bool] = ..., order_by: _Optional[_Union[EventOrder, str]] = ..., show_deleted: _Optional[bool] = ..., updated_min: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., i_cal_uid: _Optional[str] = ..., private_extended_property: _Optional[_Iterable[str]] = ..., shared_extended_property: _Optional[_Iterable[str]] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token", "next_sync_token", "time_zone")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_SYNC_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    next_page_token: str
    next_sync_token: str
    time_zone: str
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., next_sync_token: _Optional[str] = ..., time_zone: _Optional[str] = ...) -> None: ...

class GetEventRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "calendar_id", "event_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    calendar_id: str
    event_id: str
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., calendar_id: _Optional[str] = ..., event_id: _Optional[str] = ...) -> None: ...

class GetEventResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class ListEventInstancesRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "calendar_id", "event_id", "page_size", "page_token", "time_min", "time_max", "show_deleted", "original_start_time")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_MIN_FIELD_NUMBER: _ClassVar[int]
    TIME_MAX_FIELD_NUMBER: _ClassVar[int]
    SHOW_DELETED_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_START_TIME_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    calendar_id: str
    event_id: str
    page_size: int
    page_token: str
    time_min: _timestamp_pb2.Timestamp
    time_max: _timestamp_pb2.Timestamp
    show_deleted: bool
    original_start_time: EventTime
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., calendar_id: _Optional[str] = ..., event_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., time_min: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., time_max: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., show_deleted: _Optional[bool] = ..., original_start_time: _Optional[_Union[EventTime, _Mapping]] = ...) -> None: ...

class ListEventInstancesResponse(_message.Message):
    __slots__ = ("events", "next_page_token", "time_zone")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    next_page_token: str
    time_zone: str
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., time_zone: _Optional[str] = ...) -> None: ...

class CreateEventRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "calendar_id", "event", "notify")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    calendar_id: str
    event: Event
    notify: Notify
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., calendar_id: _Optional[str] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., notify: _Optional[_Union[Notify, str]] = ...) -> None: ...

class CreateEventResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class UpdateEventRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "calendar_id", "event", "update_mask", "notify")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    calendar_id: str
    event: Event
    update_mask: _field_mask_pb2.FieldMask
    notify: Notify
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., calendar_id: _Optional[str] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., notify: _Optional[_Union[Notify, str]] = ...) -> None: ...

class UpdateEventResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class DeleteEventRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "calendar_id", "event_id", "etag", "notify")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALENDAR_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    calendar_id: str
    event_id: str
    etag: str
    notify: Notify
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., calendar_id: _Optional[str] = ..., event_id: _Optional[str] = ..., etag: _Optional[str] = ..., notify: _Optional[_Union[Notify, str]] = ...) -> None: ...

class DeleteEventResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("event_id", "summary", "description", "location", "start", "end", "attendees", "recurrence", "reminders", "status", "etag", "recurring_event_id", "html_link", "create_time", "update_time", "original_start_time", "i_cal_uid", "transparency", "visibility", "organizer", "creator", "extended_properties", "conference_link", "event_type", "attendees_omitted", "sequence")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ATTENDEES_FIELD_NUMBER: _ClassVar[int]
    RECURRENCE_FIELD_NUMBER: _ClassVar[int]
    REMINDERS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    RECURRING_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    HTML_LINK_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_START_TIME_FIELD_NUMBER: _ClassVar[int]
    I_CAL_UID_FIELD_NUMBER: _ClassVar[int]
    TRANSPARENCY_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    ORGANIZER_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    CONFERENCE_LINK_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENDEES_OMITTED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    summary: str
    description: str
    location: str
    start: EventTime
    end: EventTime
    attendees: _containers.RepeatedCompositeFieldContainer[Attendee]
    recurrence: _containers.RepeatedScalarFieldContainer[str]
    reminders: Reminders
    status: EventStatus
    etag: str
    recurring_event_id: str
    html_link: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    original_start_time: EventTime
    i_cal_uid: str
    transparency: EventTransparency
    visibility: EventVisibility
    organizer: Person
    creator: Person
    extended_properties: ExtendedProperties
    conference_link: str
    event_type: str
    attendees_omitted: bool
    sequence: int
    def __init__(self, event_id: _Optional[str] = ..., summary: _Optional[str] = ..., description: _Optional[str] = ..., location: _Optional[str] = ..., start: _Optional[_Union[EventTime, _Mapping]] = ..., end: _Optional[_Union[EventTime, _Mapping]] = ..., attendees: _Optional[_Iterable[_Union[Attendee, _Mapping]]] = ..., recurrence: _Optional[_Iterable[str]] = ..., reminders: _Optional[_Union[Reminders, _Mapping]] = ..., status: _Optional[_Union[EventStatus, str]] = ..., etag: _Optional[str] = ..., recurring_event_id: _Optional[str] = ..., html_link: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., original_start_time: _Optional[_Union[EventTime, _Mapping]] = ..., i_cal_uid: _Optional[str] = ..., transparency: _Optional[_Union[EventTransparency, str]] = ..., visibility: _Optional[_Union[EventVisibility, str]] = ..., organizer: _Optional[_Union[Person, _Mapping]] = ..., creator: _Optional[_Union[Person, _Mapping]] = ..., extended_properties: _Optional[_Union[ExtendedProperties, _Mapping]] = ..., conference_link: _Optional[str] = ..., event_type: _Optional[str] = ..., attendees_omitted: _Optional[bool] = ..., sequence: _Optional[int] = ...) -> None: ...

class Person(_message.Message):
    __slots__ = ("email", "display_name", "is_self")
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    IS_SELF_FIELD_NUMBER: _ClassVar[int]
    email: str
    display_name: str
    is_self: bool
    def __init__(self, email: _Optional[str] = ..., display_name: _Optional[str] = ..., is_self: _Optional[bool] = ...) -> None: ...

class ExtendedProperties(_message.Message):
    __slots__ = ("private", "shared")
    class PrivateEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SharedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    private: _containers.ScalarMap[str, str]
    shared: _containers.ScalarMap[str, str]
    def __init__(self, private: _Optional[_Mapping[str, str]] = ..., shared: _Optional[_Mapping[str, str]] = ...) -> None: ...

class EventTime(_message.Message):
    __slots__ = ("date", "date_time", "time_zone")
    DATE_FIELD_NUMBER: _ClassVar[int]
    DATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    date: str
    date_time: _timestamp_pb2.Timestamp
    time_zone: str
    def __init__(self, date: _Optional[str] = ..., date_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., time_zone: _Optional[str] = ...) -> None: ...

class Attendee(_message.Message):
    __slots__ = ("email", "display_name", "optional", "response_status", "organizer", "is_self", "comment", "additional_guests", "resource")
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_STATUS_FIELD_NUMBER: _ClassVar[int]
    ORGANIZER_FIELD_NUMBER: _ClassVar[int]
    IS_SELF_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_GUESTS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    email: str
    display_name: str
    optional: bool
    response_status: ResponseStatus
    organizer: bool
    is_self: bool
    comment: str
    additional_guests: int
    resource: bool
    def __init__(self, email: _Optional[str] = ..., display_name: _Optional[str] = ..., optional: _Optional[bool] = ..., response_status: _Optional[_Union[ResponseStatus, str]] = ..., organizer: _Optional[bool] = ..., is_self: _Optional[bool] = ..., comment: _Optional[str] = ..., additional_guests: _Optional[int] = ..., resource: _Optional[bool] = ...) -> None: ...

class Reminders(_message.Message):
    __slots__ = ("use_default", "overrides")
    USE_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    use_default: bool
    overrides: _containers.RepeatedCompositeFieldContainer[Reminder]
    def __init__(self, use_default: _Optional[bool] = ..., overrides: _Optional[_Iterable[_Union[Reminder, _Mapping]]] = ...) -> None: ...

class Reminder(_message.Message):
    __slots__ = ("method", "minutes")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MINUTES_FIELD_NUMBER: _ClassVar[int]
    method: ReminderMethod
    minutes: int
    def __init__(self, method: _Optional[_Union[ReminderMethod, str]] = ..., minutes: _Optional[int] = ...) -> None: ...
