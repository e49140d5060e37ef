"""`integrations.v1.GoogleCalendarService`: each method decodes the request, calls one use case, encodes the result."""

from integration_server.domain.calendar import Notify
from integration_server.rpc import google_calendar_mapping, mapping
from integration_server.rpc.methods import Context
from integration_server.service.calendar.google_calendar import WRITABLE, GoogleCalendar
from integrations.v1 import google_calendar_pb2 as pb
from integrations.v1 import google_calendar_pb2_grpc as pb_grpc


class GoogleCalendarService(pb_grpc.GoogleCalendarServiceServicer):
    """Implements the service. The contract describes each RPC."""

    def __init__(self, calendar: GoogleCalendar) -> None:
        self._calendar = calendar

    async def ListCalendars(self, request: pb.ListCalendarsRequest, context: Context) -> pb.ListCalendarsResponse:
        """List the account's calendars."""
        page = await self._calendar.list_calendars(
            *mapping.decode_target(request),
            *mapping.decode_page(request, google_calendar_mapping.MAX_PAGE_SIZE),
        )
        return mapping.encode(pb.ListCalendarsResponse, page)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """List a calendar's events, or the changes since a sync token."""
        page = await self._calendar.list_events(
            *mapping.decode_target(request),
            mapping.decode_text("calendar_id", request.calendar_id),
            google_calendar_mapping.decode_event_query(request),
        )
        events = [google_calendar_mapping.encode_event(event) for event in page.events]
        return mapping.encode(pb.ListEventsResponse, page, events=events)

    async def GetEvent(self, request: pb.GetEventRequest, context: Context) -> pb.GetEventResponse:
        """Get an event."""
        event = await self._calendar.get_event(
            *mapping.decode_target(request),
            mapping.decode_text("calendar_id", request.calendar_id),
            google_calendar_mapping.decode_event_id(request),
        )
        return pb.GetEventResponse(event=google_calendar_mapping.encode_event(event))

    async def ListEventInstances(
        self, request: pb.ListEventInstancesRequest, context: Context
    ) -> pb.ListEventInstancesResponse:
        """List the instances of a recurring event."""
        page = await self._calendar.list_instances(
            *mapping.decode_target(request),
            mapping.decode_text("calendar_id", request.calendar_id),
            google_calendar_mapping.decode_event_id(request),
            google_calendar_mapping.decode_instance_query(request),
        )
        events = [google_calendar_mapping.encode_event(event) for event in page.events]
        return mapping.encode(pb.ListEventInstancesResponse, page, events=events)

    async def CreateEvent(self, request: pb.CreateEventRequest, context: Context) -> pb.CreateEventResponse:
        """Create an event."""
        event = await self._calendar.create_event(
            *mapping.decode_target(request),
            mapping.decode_text("calendar_id", request.calendar_id),
            google_calendar_mapping.decode_event(request.event, WRITABLE),
            mapping.decode_enum(Notify, request, "notify"),
        )
        return pb.CreateEventResponse(event=google_calendar_mapping.encode_event(event))

    async def UpdateEvent(self, request: pb.UpdateEventRequest, context: Context) -> pb.UpdateEventResponse:
        """Update an event."""
        fields = mapping.decode_update_mask(request.update_mask, WRITABLE)
        event = await self._calendar.update_event(
            *mapping.decode_target(request),
            mapping.decode_text("calendar_id", request.calendar_id),
            google_calendar_mapping.decode_event(request.event, fields or WRITABLE),
            fields,
            mapping.decode_enum(Notify, request, "notify"),
        )
        return pb.UpdateEventResponse(event=google_calendar_mapping.encode_event(event))

    async def DeleteEvent(self, request: pb.DeleteEventRequest, context: Context) -> pb.DeleteEventResponse:
        """Delete an event."""
        await self._calendar.delete_event(
            *mapping.decode_target(request),
            mapping.decode_text("calendar_id", request.calendar_id),
            google_calendar_mapping.decode_event_id(request),
            google_calendar_mapping.decode_etag("etag", request.etag),
            mapping.decode_enum(Notify, request, "notify"),
        )
        return pb.DeleteEventResponse()
