"""A servicer of credentials that a test controls, served on loopback."""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf import any as any_message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from integrations.v1 import credentials_pb2, event_pb2, integration_pb2, webhook_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import (
    IntegrationServiceServicer,
    add_IntegrationServiceServicer_to_server,
)


def status(code: int, reason: str) -> status_pb2.Status:
    """A status with its reason."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="integrations.v1")
    return status_pb2.Status(code=code, message=reason.lower(), details=[any_message.pack(info)])


class FakeServicer(IntegrationServiceServicer):
    """Holds the token of each integration, and reports changes to streams. `calls` counts the RPCs."""

    def __init__(self, *, has_watch: bool = True) -> None:
        self.has_watch = has_watch
        self.has_batch = True
        self.decisions: list[str | grpc.StatusCode] = []
        self.connect_time = 0
        self.max_batch = 1000
        self.calls: Counter[str] = Counter()
        self.tokens = {number: f"secret-token-{number}-1" for number in range(1, 51)}
        self.lifetime = timedelta(hours=1)
        self.accepted_token: str | None = None
        self.watch_requests: list[pb.WatchCredentialsRequest] = []
        self.streams: list[queue.Queue[pb.WatchCredentialsResponse | None]] = []
        self.refreshed: Callable[[int], None] = lambda _: None
        self.lock = threading.Lock()
        self.webhook_events = 0
        self.acknowledged: list[int] = []
        self.event_streams: list[threading.Event] = []
        self.event_end: grpc.StatusCode | None = None
        self.event_rejection: grpc.StatusCode | None = None
        self.event_requests: list[pb.WatchIntegrationsRequest] = []
        self.lost_cursors: set[str] = set()

    def credentials(self, number: int) -> credentials_pb2.Credentials:
        """The credentials of an integration."""
        token = self.tokens[number]
        message = credentials_pb2.Credentials(bearer_token=token, headers={"Authorization": f"Bearer {token}"})
        message.expire_time.FromDatetime(datetime.now(UTC) + self.lifetime)
        return message

    def report(self, number: int, cursor: str) -> None:
        """Tell all streams what an integration has now."""
        if number in self.tokens:
            result = pb.CredentialsResult(credentials=self.credentials(number))
        else:
            result = pb.CredentialsResult(error=status(code_pb2.FAILED_PRECONDITION, "REAUTHORIZATION_REQUIRED"))
        for stream in self.streams:
            stream.put(
                pb.WatchCredentialsResponse(
                    results=[pb.WatchedCredentials(integration_id=number, result=result)], cursor=cursor
                )
            )

    def end_streams(self) -> None:
        """End all streams with UNAVAILABLE."""
        for stream in self.streams:
            stream.put(None)

    def _count(self, name: str, context: Any) -> None:
        self.calls[name] += 1
        token = dict(context.invocation_metadata()).get("authorization")
        if self.accepted_token is not None and token != f"Bearer {self.accepted_token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the caller is not known")

    def ListIntegrations(self, request: pb.ListIntegrationsRequest, context: Any) -> pb.ListIntegrationsResponse:
        """Two pages of one integration for `two`; otherwise one integration."""
        self._count("ListIntegrations", context)
        numbers = {"none": [], "two": [1, 2]}.get(request.user_id, [1])
        index = int(request.page_token or 0)
        rows = [
            integration_pb2.Integration(integration_id=number, is_connected=True, is_active=True)
            for number in numbers[index : index + 1]
        ]
        return pb.ListIntegrationsResponse(
            integrations=rows, next_page_token=str(index + 1) if index + 1 < len(numbers) else ""
        )

    def GetCredentials(self, request: pb.GetCredentialsRequest, context: Any) -> pb.GetCredentialsResponse:
        """The credentials of users whose name is not `stranger`."""
        self._count("GetCredentials", context)
        if request.user_id == "stranger" or request.integration_id not in self.tokens:
            context.set_trailing_metadata(
                [("grpc-status-details-bin", status(5, "INTEGRATION_NOT_FOUND").SerializeToString())]
            )
            context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        return pb.GetCredentialsResponse(credentials=self.credentials(request.integration_id))

    def BatchGetCredentials(
        self, request: pb.BatchGetCredentialsRequest, context: Any
    ) -> pb.BatchGetCredentialsResponse:
        """As `GetCredentials`, for each. A response has at most `max_batch` results."""
        self._count("BatchGetCredentials", context)
        if not self.has_batch:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such RPC")
        results = []
        for index, item in enumerate(request.requests):
            if index >= self.max_batch:
                results.append(pb.CredentialsResult(error=status(code_pb2.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE")))
            elif item.user_id == "stranger" or item.integration_id not in self.tokens:
                results.append(pb.CredentialsResult(error=status(code_pb2.NOT_FOUND, "INTEGRATION_NOT_FOUND")))
            else:
                results.append(pb.CredentialsResult(credentials=self.credentials(item.integration_id)))
        return pb.BatchGetCredentialsResponse(results=results)

    def Connect(self, request: pb.ConnectRequest, context: Any) -> pb.ConnectResponse:
        """A device authorization of integration 7."""
        self._count("Connect", context)
        response = pb.ConnectResponse(integration_id=7, state="state", user_code="CODE", verification_uri="https://x/d")
        response.expire_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=10))
        return response

    def HandleCallback(self, request: pb.HandleCallbackRequest, context: Any) -> pb.HandleCallbackResponse:
        """The next of `decisions`: a status, or the reason of a result; empty for success."""
        self._count("HandleCallback", context)
        decision = self.decisions.pop(0)
        if isinstance(decision, grpc.StatusCode):
            context.abort(decision, "no decision")
        assert isinstance(decision, str)
        return pb.HandleCallbackResponse(success=not decision, integration_id=7, reason=decision)

    def GetIntegration(self, request: pb.GetIntegrationRequest, context: Any) -> pb.GetIntegrationResponse:
        """An integration that was connected `connect_time` seconds after the epoch; 0 for one that is not."""
        self._count("GetIntegration", context)
        integration = integration_pb2.Integration(integration_id=7, is_connected=bool(self.connect_time))
        if self.connect_time:
            integration.connect_time.FromSeconds(self.connect_time)
        return pb.GetIntegrationResponse(integration=integration)

    def ListWebhookEvents(self, request: pb.ListWebhookEventsRequest, context: Any) -> pb.ListWebhookEventsResponse:
        """The `webhook_events` that are not acknowledged."""
        self._count("ListWebhookEvents", context)
        first = max(self.acknowledged, default=0) + 1
        events = [webhook_pb2.WebhookEvent(number=number) for number in range(first, self.webhook_events + 1)]
        return pb.ListWebhookEventsResponse(events=events)

    def AckWebhookEvents(self, request: pb.AckWebhookEventsRequest, context: Any) -> pb.AckWebhookEventsResponse:
        """Record the number."""
        self._count("AckWebhookEvents", context)
        self.acknowledged.append(request.through_number)
        return pb.AckWebhookEventsResponse(through_number=request.through_number)

    def WatchIntegrations(self, request: pb.WatchIntegrationsRequest, context: Any) -> Iterator[Any]:
        """Send an event, and then nothing until its one of `event_streams` is set, as by a cancel. Then `event_end`."""
        self._count("WatchIntegrations", context)
        ended = threading.Event()
        self.event_streams.append(ended)
        self.event_requests.append(request)
        if self.event_rejection is not None:
            context.abort(self.event_rejection, "a defect")
        if request.cursor in self.lost_cursors:
            lost = status(code_pb2.FAILED_PRECONDITION, "CURSOR_EXPIRED")
            context.set_trailing_metadata([("grpc-status-details-bin", lost.SerializeToString())])
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the cursor has expired")
        context.add_callback(ended.set)
        yield pb.WatchIntegrationsResponse(event=event_pb2.IntegrationEvent(integration_id=1), cursor="next")
        ended.wait(60)
        if self.event_end is not None:
            context.abort(self.event_end, "the stream has ended")

    def RefreshToken(self, request: pb.RefreshTokenRequest, context: Any) -> pb.RefreshTokenResponse:
        """Call `refreshed`."""
        self._count("RefreshToken", context)
        self.refreshed(request.integration_id)
        return pb.RefreshTokenResponse(success=True, refreshed=True)

    def WatchCredentials(self, request: pb.WatchCredentialsRequest, context: Any) -> Iterator[Any]:
        """Send a cursor, and then what is reported."""
        self._count("WatchCredentials", context)
        if not self.has_watch:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such RPC")
        responses: queue.Queue[pb.WatchCredentialsResponse | None] = queue.Queue()
        with self.lock:
            self.watch_requests.append(request)
            self.streams.append(responses)
        context.add_callback(lambda: responses.put(None))
        yield pb.WatchCredentialsResponse(cursor=request.cursor or "start")
        while (response := responses.get()) is not None:
            yield response
        self.streams.remove(responses)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops")


@contextmanager
def serve(servicer: FakeServicer, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serve on a free port of loopback; the address."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    add_IntegrationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        servicer.end_streams()
        server.stop(0).wait(30)
