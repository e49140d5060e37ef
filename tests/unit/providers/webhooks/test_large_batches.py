"""Batches of very many events: each scheme reads a request, and makes its events in slices, without a long pause.

The CPU time of this thread is measured, so that a busy machine does not matter.
"""

import time
from collections.abc import Callable

import pytest

from integration_server.domain.webhooks import MAX_EVENTS, WebhookRequest
from integration_server.lifecycle import freeze_gc
from integration_server.providers.webhooks.parsing import as_payload
from integration_server.providers.webhooks.scheme import MalformedWebhook
from tests.loop_hold.meter import MAX_HOLD, shortest_time
from tests.unit.providers.webhooks.samples import NOW, SAMPLES, Sample, received

BY_NAME = {sample.name: sample for sample in SAMPLES}
MAX_BODY = 1 << 20
MAX_READ = 0.1  # seconds of the thread that reads such a body
SLICE = 100


def fill(begin: str, item: str, end: str, count: int = MAX_BODY) -> bytes:
    """A body with as many items as fit into it, at most `count`."""
    count = min(count, (MAX_BODY - len(begin) - len(end)) // (len(item) + 1))
    return f"{begin}{','.join([item] * count)}{end}".encode()


def batches() -> dict[str, tuple[Sample, bytes]]:
    """For each scheme with batches, the body with the most events."""
    most = 99_900  # lists and objects that a body may have
    entity = '{"eventNotifications":[{"realmId":"1","dataChangeEvent":{"entities":['
    entry = '{"object":"page","entry":[{"id":"1","text":"%s","changes":['
    graph = BY_NAME["microsoft-graph"]
    state = as_payload({"clientState": graph.secret}).decode()
    return {
        "hubspot": (BY_NAME["hubspot"], fill("[", "{}", "]", most)),
        "sendgrid": (BY_NAME["sendgrid"], fill("[", "{}", "]", most)),
        "xero": (BY_NAME["xero"], fill('{"events":[', "{}", "]}", most)),
        "quickbooks": (BY_NAME["quickbooks"], fill("[", "{}", "]", most)),
        "quickbooks-entities": (BY_NAME["quickbooks"], fill(entity, "{}", "]}}]}", most)),
        "meta": (BY_NAME["meta"], fill(entry % ("x" * 4000), "{}", "]}]}", most)),
        "dropbox": (BY_NAME["dropbox"], fill('{"list_folder":{"accounts":[', '"a"', "]}}")),
        "graph": (graph, fill('{"value":[', state, "]}", most)),
    }


def hold(call: Callable[[], object], sufficient: float = MAX_HOLD) -> float:
    """The CPU seconds of the fastest of several calls, without the collection of earlier tests' garbage."""
    freeze_gc()
    return shortest_time(call, sufficient)


@pytest.mark.parametrize("name", batches())
def test_a_large_batch_is_read_without_a_long_pause(name: str) -> None:
    sample, body = batches()[name]
    request = sample.sign(sample.secret, body, NOW)
    assert hold(lambda: received(sample.scheme, request, sample.secret), MAX_READ) < MAX_READ
    events = received(sample.scheme, request, sample.secret).events
    assert len(events) > MAX_EVENTS or name == "dropbox"
    assert hold(lambda: events[:SLICE]) < MAX_HOLD


@pytest.mark.parametrize("name", ["meta", "graph"])
def test_negative_control_all_events_made_at_once_hold_the_loop(name: str) -> None:
    sample, body = batches()[name]
    events = received(sample.scheme, sample.sign(sample.secret, body, NOW), sample.secret).events
    begin = time.thread_time()
    assert len(events[:]) == MAX_EVENTS + 1
    assert time.thread_time() - begin > MAX_HOLD


@pytest.mark.parametrize("body", [fill("[", "[]", "]"), fill("[", "{}", "]"), fill("[", '{"a":[]}', "]")])
def test_a_body_of_more_lists_and_objects_than_any_batch_has_is_not_parsed(body: bytes) -> None:
    request = signed("sendgrid", body)
    with pytest.raises(MalformedWebhook):
        received(BY_NAME["sendgrid"].scheme, request, BY_NAME["sendgrid"].secret)


def test_a_batch_of_a_thousand_rich_events_is_not_malformed() -> None:
    event = as_payload({"sg_event_id": "x", "event": "open", "category": ["a", "b"], "args": {"a": [{}] * 20}}).decode()
    events = received(
        BY_NAME["sendgrid"].scheme, signed("sendgrid", fill("[", event, "]", 1000)), BY_NAME["sendgrid"].secret
    ).events
    assert len(events) == 1000


def test_an_entry_with_much_that_every_event_would_repeat_is_one_event() -> None:
    entry = '{"object":"page","entry":[{"id":"1","text":"%s","changes":['
    request = signed("meta", fill(entry % ("x" * 5000), "{}", "]}]}", 1000))
    # Otherwise a body of 1 MiB would become events of gigabytes.
    (event,) = received(BY_NAME["meta"].scheme, request, BY_NAME["meta"].secret).events
    assert (event.event_type, event.account_id) == ("page", "1")
    assert len(event.payload) < len(request.body)


def signed(name: str, body: bytes) -> WebhookRequest:
    """A request of a provider."""
    return BY_NAME[name].sign(BY_NAME[name].secret, body, NOW)
