"""docs/client-adapters.md: every snippet runs as it is, against simulated hosts of the providers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client_adapters.accounts import FakeAccount
from tests.integration.client_adapters.internet import Response, as_json, simulated_internet
from tests.integration.client_adapters.libraries import source_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("connections_are_collected"),
]

PAGE = (Path(__file__).parents[3] / "docs/client-adapters.md").read_text()
BUCKETS = b"<ListAllMyBucketsResult><Buckets><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>"


def snippets() -> Iterator[tuple[str, str]]:
    """The snippet of each section that is about a library."""
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE):
        for snippet in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            yield title, snippet


RESULTS: dict[str, tuple[str, object]] = {
    "httpx": ("calendars", []),
    "requests": ("calendars", []),
    "google-auth": ("calendars", []),
    "azure-core": ("profile", {"id": "1"}),
    "PyGithub": ("login", "ada"),
    "twilio": ("message.sid", "SM1"),
    "slack_sdk": ("client.base_url", "https://slack.com/api/"),
    "stripe": ("balance.object", "balance"),
    "botocore": ("buckets", [{"Name": "b"}]),
}


def _respond(host: str, path: str, authorization: str) -> Response:
    if "amazonaws" in host:
        return "application/xml", BUCKETS
    return as_json(
        {
            "api.github.com": {"login": "ada", "id": 1, "url": "https://api.github.com/user"},
            "api.stripe.com": {"object": "balance", "available": []},
            "api.twilio.com": {"sid": "SM1", "num_segments": "1"},
            "graph.microsoft.com": {"id": "1"},
            "slack.com": {"ok": True},
        }.get(host, {"items": []})
    )


def test_every_library_has_a_snippet() -> None:
    assert [title for title, _ in snippets()] == list(RESULTS)


@pytest.mark.parametrize(("title", "snippet"), list(snippets()), ids=list(RESULTS))
def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, snippet: str) -> None:
    source = source_for(title)
    names: dict[str, Any] = {"account": FakeAccount(source)}
    with simulated_internet(monkeypatch, tmp_path, _respond) as received:
        exec(snippet, names)  # noqa: S102 — of our documentation
    expression, value = RESULTS[title]
    assert eval(expression, names) == value  # noqa: S307 — of this file
    assert received
    assert all(authorization for _, authorization in received)
