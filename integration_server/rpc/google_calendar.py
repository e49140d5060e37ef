"""`integrations.v1.GoogleCalendarService`: each method decodes, calls one use case and encodes."""

from typing import Any, TypeAlias

import grpc

from integration_server.rpc import decoding, google_calendar_mapping
from integration_server.service.calendar.google_calendar import GoogleCalendar
from integrations.v1 import google_calendar_pb2 as pb
from integrations.v1 import google_calendar_pb2_grpc as pb_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class GoogleCalendarService(pb_grpc.GoogleCalendarServiceServicer):
    """The RPCs of the contract."""

    def __init__(self, calendar: GoogleCalendar) -> None:
        self._calendar = calendar

    async def ListCalendars(self, request: pb.ListCalendarsRequest, context: Context) -> pb.ListCalendarsResponse:
        """List the account's calendars."""
        page = await self._calendar.list_calendars(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            google_calendar_mapping.page_size(request.page_size),
            decoding.text("page_token", request.page_token, decoding.MAX_PARAMETER_LENGTH),
        )
        return pb.ListCalendarsResponse(
            calendars=map(google_calendar_mapping.calendar, page.calendars), next_page_token=page.next_page_token
        )

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """List a calendar's events, or what changed of them."""
        page = await self._calendar.list_events(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            google_calendar_mapping.calendar_id(request.calendar_id),
            google_calendar_mapping.query(request),
        )
        return pb.ListEventsResponse(
            events=map(google_calendar_mapping.encode_event, page.events),
            next_page_token=page.next_page_token,
            next_sync_token=page.next_sync_token,
            time_zone=page.time_zone,
        )

    async def CreateEvent(self, request: pb.CreateEventRequest, context: Context) -> pb.CreateEventResponse:
        """Create an event."""
        event = await self._calendar.create_event(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            google_calendar_mapping.calendar_id(request.calendar_id),
            google_calendar_mapping.event(request.event),
            google_calendar_mapping.notify(request.notify),
        )
        return pb.CreateEventResponse(event=google_calendar_mapping.encode_event(event))

    async def UpdateEvent(self, request: pb.UpdateEventRequest, context: Context) -> pb.UpdateEventResponse:
        """Change an event."""
        event = await self._calendar.update_event(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            google_calendar_mapping.calendar_id(request.calendar_id),
            google_calendar_mapping.event(request.event),
            google_calendar_mapping.update_mask(request.update_mask.paths),
            google_calendar_mapping.notify(request.notify),
        )
        return pb.UpdateEventResponse(event=google_calendar_mapping.encode_event(event))

    async def DeleteEvent(self, request: pb.DeleteEventRequest, context: Context) -> pb.DeleteEventResponse:
        """Delete an event."""
        await self._calendar.delete_event(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            google_calendar_mapping.calendar_id(request.calendar_id),
            decoding.text("event_id", request.event_id, 1024),
            google_calendar_mapping.etag("etag", request.etag),
            google_calendar_mapping.notify(request.notify),
        )
        return pb.DeleteEventResponse()
