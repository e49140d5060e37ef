"""Alerts, runbooks and unit tests of alerts belong together one to one; rules and dashboards name real metrics."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.dashboard_queries import dashboard_queries
from integration_server.observability.metrics import METRICS, PREFIX
from tests.prometheus import EVENTS_WITH_DEFAULT, queries_with_default

PROJECT = Path(__file__).parents[2]
PROMETHEUS = PROJECT / "deploy" / "prometheus"
DASHBOARDS = sorted((PROJECT / "deploy" / "grafana").glob("*.json"))
RUNBOOKS = PROJECT / "docs" / "runbooks.md"
PARTS = ["Means", "Users see", "Do", "Over"]


def rules() -> Iterator[Mapping[str, Any]]:
    """All alerts and recording rules."""
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]:
        yield from group["rules"]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def sections(text: str) -> Mapping[str, str]:
    """The sections of a page of runbooks by their headings."""
    return dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))


def unknown_metrics(expression: str) -> set[str]:
    """Metrics of the server that an expression names and that no process has."""
    declared = {name for metric in METRICS for name in metric.sample_names}
    return set(re.findall(rf"\b{PREFIX}\w+", expression)) - declared


def unit_tests() -> Mapping[str, Sequence[tuple[str, bool]]]:
    """Of each alert, the times at which its unit test looks at it, and whether it then fires."""
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]
    found = {}
    for test in tests:
        looks = test["promql_expr_test"]
        assert all(f'alertname="{test["name"]}"' in look["expr"] for look in looks)
        found[test["name"]] = [(look["eval_time"], bool(look["exp_samples"])) for look in looks]
    assert len(found) == len(tests)
    return found


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert list(sections(RUNBOOKS.read_text())) == list(ALERTS)  # in the same order


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_severe_it_is_what_happens_and_where_its_runbook_is(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"]["summary"].endswith(".")
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert PROJECT / page == RUNBOOKS
    assert anchor == name.lower()


@pytest.mark.parametrize(("name", "section"), sections(RUNBOOKS.read_text()).items())
def test_a_runbook_has_all_parts(name: str, section: str) -> None:
    assert re.findall(r"^\*\*([^*]+):\*\* \S", section, re.MULTILINE) == PARTS
    anchors = re.findall(r"\]\(#(\w+)\)", section)
    assert set(anchors) <= {alert.lower() for alert in ALERTS} - {name.lower()}


def test_the_search_finds_a_part_that_is_missing() -> None:
    page = "## Group\n\n### One\n\n**Means:** a\n\n**Do:**\n\n### Two\n\n**Means:** b\n"
    assert {name: re.findall(r"^\*\*([^*]+):\*\* \S", text, re.MULTILINE) for name, text in sections(page).items()} == {
        "One": ["Means"],
        "Two": ["Means"],
    }


def test_every_alert_is_quiet_fires_and_resolves_in_its_unit_test() -> None:
    tests = unit_tests()
    assert list(tests) == list(ALERTS)
    for name, looks in tests.items():
        assert [fires for _, fires in looks] == [False, True, False], name


def test_rules_name_metrics_that_exist() -> None:
    assert {rule["expr"]: found for rule in rules() if (found := unknown_metrics(rule["expr"]))} == {}
    assert unknown_metrics(f"rate({PREFIX}rpc_total[5m])") == {f"{PREFIX}rpc_total"}


@pytest.mark.slow
def test_most_metrics_are_watched() -> None:
    """Those that are not only explain others."""
    watched = {metric for metric in METRICS for rule in rules() if metric.name in rule["expr"]}
    assert {metric.name.removeprefix(PREFIX) for metric in METRICS} - {
        metric.name.removeprefix(PREFIX) for metric in watched
    } == {
        "http_request_duration_seconds",
        "token_refresh_calls_total",
        "rate_limit_wait_seconds",
        "event_streams_open",
        "credentials_cache_lookups_total",
        "audit_pending_entries",
    }


def queries(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """All queries of a dashboard."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported_and_names_metrics_that_exist(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"integration-server-{path.stem}"
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for query in queries(dashboard):
        assert unknown_metrics(query) == set()
        assert set(re.findall(r"integration_server:[\w:]+", query)) <= recorded
        assert set(re.findall(r"\$\w+", query)) <= {"$instance", "$__rate_interval"}


def test_the_dashboards_show_every_metric() -> None:
    shown = "\n".join(query for path in DASHBOARDS for query in queries(json.loads(path.read_text())))
    assert [metric.name for metric in METRICS if metric.name not in shown] == []


def test_each_query_with_a_default_shows_an_event_whose_alert_is_tried() -> None:
    """A default always has data: without this, such a query could name anything."""
    tried = (PROJECT / "tests" / "end_to_end" / "test_alerts.py").read_text()
    assert [name for name in EVENTS_WITH_DEFAULT if f"IntegrationServer{name}" not in ALERTS] == []
    assert [name for name in EVENTS_WITH_DEFAULT if f'"{name}"' not in tried] == []
    shown = [query for name in EVENTS_WITH_DEFAULT for query in queries_with_default(name)]
    with_default = [query for query in dashboard_queries() if query.without_default != query]
    assert [query for query in with_default if query not in shown] == []
    assert len(with_default) > 10


def test_no_other_query_has_data_whatever_the_metrics_are() -> None:
    always = re.compile(r"\b(vector|absent|absent_over_time|time|scalar)\(")
    assert [query for query in dashboard_queries() if always.search(query.without_default.expression)] == []
