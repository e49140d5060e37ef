"""Create an event in a user's Google Calendar: the example of the requirements, over gRPC.

make run                                                  # in another terminal; the sandbox simulates Google
.venv/bin/python examples/calendar_sync.py
"""

import argparse
import asyncio
import logging
import sys
from datetime import UTC, datetime

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from integrations.v1.google_calendar_pb2 import CreateEventRequest, Event, EventTime, ListEventsRequest
from integrations.v1.google_calendar_pb2_grpc import GoogleCalendarServiceStub
from integrations.v1.integration_service_pb2 import ListIntegrationsRequest
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

logger = logging.getLogger(__name__)


async def sync_appointment_to_calendar(appointment_id: int, user_id: str, channel: grpc.aio.Channel) -> Event:
    """Create the event of an appointment. Raises `ValueError` if the user has connected no calendar."""
    # Get user's Google Calendar integration
    listed = await IntegrationServiceStub(channel).ListIntegrations(
        ListIntegrationsRequest(user_id=user_id, integration_type="google_calendar")
    )
    integration = next((row for row in listed.integrations if row.is_active and row.is_connected), None)

    if not integration:
        raise ValueError("No active Google Calendar integration found")

    # Create calendar event
    event_data = Event(
        summary=f"Appointment #{appointment_id}",
        start=event_time("2024-01-15T10:00:00Z"),
        end=event_time("2024-01-15T11:00:00Z"),
    )

    try:
        created = await GoogleCalendarServiceStub(channel).CreateEvent(
            # Without a calendar_id: the calendar in the integration's config, else the user's primary calendar.
            CreateEventRequest(user_id=user_id, integration_id=integration.integration_id, event=event_data),
            timeout=10,
        )
        event: Event = created.event
        return event
    except grpc.aio.AioRpcError as error:
        logger.exception("Failed to sync appointment: %s", error.details())
        raise


def event_time(text: str) -> EventTime:
    """The time of an event, parsed from RFC 3339."""
    timestamp = Timestamp()
    timestamp.FromJsonString(text)
    return EventTime(date_time=timestamp)


async def main() -> None:
    """Create one event, and list the events of its day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:50051", help="the address of the server")
    parser.add_argument("--user", default="ada", help="the user of the calendar")
    parser.add_argument("--appointment", type=int, default=42, help="the number of the appointment")
    options = parser.parse_args()
    async with grpc.aio.insecure_channel(options.server) as channel:
        event = await sync_appointment_to_calendar(options.appointment, options.user, channel)
        print("Created:", event.event_id, event.summary, event.html_link)

        integrations = await IntegrationServiceStub(channel).ListIntegrations(
            ListIntegrationsRequest(user_id=options.user, integration_type="google_calendar")
        )
        day = ListEventsRequest(user_id=options.user, integration_id=integrations.integrations[0].integration_id)
        day.time_min.FromDatetime(datetime(2024, 1, 15, tzinfo=UTC))
        day.time_max.FromDatetime(datetime(2024, 1, 16, tzinfo=UTC))
        for listed in (await GoogleCalendarServiceStub(channel).ListEvents(day, timeout=10)).events:
            print("On that day:", listed.start.date_time.ToJsonString(), listed.summary)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
