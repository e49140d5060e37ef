"""Traces over sidecar, server, SQL and provider: one trace for a callback, which continues that of the client."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from integration_server.observability.otlp import SpanEncoder
from integration_server.observability.tracing import RecordedSpan, SpanTracing
from integration_server.redaction import redact_text
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.system import run_system

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
SERVICE = "integrations.v1.IntegrationService"
JSON = {"Accept": "application/json", "traceparent": TRACEPARENT, "x-request-id": "of-the-browser"}


class Traces:
    """Traces that are kept in memory."""

    def __init__(self, clean: Callable[[str], str] = redact_text) -> None:
        self.spans: list[RecordedSpan] = []
        self.tracing = SpanTracing(self.spans.append)
        self._encode = SpanEncoder("", clean).encode

    def of(self, trace_id: str) -> list[RecordedSpan]:
        return [span for span in self.spans if span.trace_id == trace_id]

    @property
    def text(self) -> str:
        """What is exported."""
        return self._encode(self.spans).decode("latin-1")


def parents_of(spans: list[RecordedSpan], name: str) -> set[str]:
    """The names of the spans around those with this name; the id of a parent that is elsewhere."""
    names = {"": "", **{span.span_id: span.name for span in spans}}
    return {names.get(span.parent_id, span.parent_id) for span in spans if span.name == name}


@pytest.mark.slow
async def test_a_callback_is_one_trace_which_continues_that_of_the_client(database_url: str) -> None:
    traces = Traces()
    async with run_system(database_url, tracing=traces.tracing) as system:
        begun = await system.begin()
        redirect = await system.decide(begun, account="ada")
        response = await system.follow(redirect, JSON)
        assert response.json()["success"] is True
        secrets = set(system.sandbox.secrets)
    spans = traces.of(TRACE_ID)
    assert parents_of(spans, "GET callback") == {PARENT_ID}
    assert {"GET callback", f"{SERVICE}/HandleCallback"} <= parents_of(spans, f"{SERVICE}/HandleCallback")
    assert parents_of(spans, "POST") == {f"{SERVICE}/HandleCallback"}  # to the provider's token endpoint
    statements = [span for span in spans if "db.query.summary" in span.attributes]
    assert len(statements) > 3
    assert {parent for span in statements for parent in parents_of(spans, span.name)} == {f"{SERVICE}/HandleCallback"}
    assert all(" " not in str(span.attributes["server.address"]) for span in spans if span.name == "POST")
    assert secrets
    assert not [secret for secret in secrets if secret in traces.text]
    assert not [text for text in ('"ada"', redirect, "state=", "code=") if text in traces.text]


async def test_a_call_without_a_trace_begins_one_and_a_probe_none(database_url: str) -> None:
    traces = Traces()
    async with run_system(database_url, tracing=traces.tracing) as system:
        await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
        await system.browser.get(f"{system.sidecar_url}/readyz")
    (call,) = [span for span in traces.spans if span.kind == "server"]
    assert (call.name, call.parent_id) == (f"{SERVICE}/ListIntegrations", "")
    assert call.attributes["rpc.response.status_code"] == "OK"


@pytest.mark.parametrize(("clean", "is_found"), [(redact_text, False), (str, True)])
def test_a_secret_in_an_attribute_is_replaced(clean: Callable[[str], str], is_found: bool) -> None:
    """Second: the negative control, without redaction."""
    traces = Traces(clean)
    with traces.tracing.root("job", {"a": "Bearer 0123456789abcdef"}) as span:
        span.set("b", "ghp_0123456789abcdefghij0123456789abcdef")
    assert ("0123456789abcdef" in traces.text) is is_found


def test_an_exception_fails_its_span_without_its_text() -> None:
    traces = Traces()
    with pytest.raises(ValueError, match="the-secret"), traces.tracing.root("job", {}):
        raise ValueError("the-secret")
    (span,) = traces.spans
    assert span.attributes == {"error.type": "ValueError"}
    assert "the-secret" not in traces.text


@pytest.mark.slow
def test_where_traces_are_off_the_library_is_not_imported() -> None:
    program = (
        "import sys, integration_server.bootstrap, integration_server.sidecar.server, integration_server.cli.program;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"
