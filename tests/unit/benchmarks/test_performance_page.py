"""docs/performance.md is written from raw figures of any benchmark."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.charts import Bar, bar_chart, flame_graph
from benchmarks.performance_page import write_page

MACHINE = {"processor": "a processor", "cores": 2, "python": "3.11", "postgresql": "18", "load_average": [1, 2, 3]}


def write_run(folder: Path, name: str, *bounds: dict[str, Any]) -> None:
    """Write a file as the harness does."""
    content = {
        "description": f"About {name}.",
        "parameters": {"rounds": 3},
        "machine": MACHINE,
        "comparisons": [],
        "figures": {"a | figure": "1 ms"},
        "bounds": bounds,
    }
    (folder / f"{name}-postgres.json").write_text(json.dumps(content))


def bound(text: str, **numbers: Any) -> dict[str, Any]:
    """A bound as in the file."""
    return {
        "text": text,
        "measured": "1.10 times",
        "holds": True,
        "value": None,
        "limit": None,
        "spread": None,
    } | numbers


def test_each_benchmark_has_a_section_a_row_for_each_bound_and_a_plot(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    write_run(tmp_path, "growth", bound("hit: grows", value=1.1, limit=1.2, spread=[1.0, 1.2]), bound("no number"))
    write_run(tmp_path, "unheard-of", bound("new: fails", holds=False, value=9.0, limit=1.0))
    assert len(write_page(tmp_path, page)) == 2
    text = page.read_text()
    for expected in (
        "a processor",
        "postgresql 18",
        "| hit: grows | 1.10 times | 1.00 to 1.20 | yes | `growth` |",
        "| no number | 1.10 times |  | yes | `growth` |",
        "| new: fails | 1.10 times |  | **no** | `unheard-of` |",
        "## Growth",
        "About growth.",
        "## Other benchmarks",
        "a \\| figure",
        "(performance/growth.svg)",
    ):
        assert expected in text, expected
    assert text.count("About growth.") == 1
    assert (tmp_path / "performance" / "growth.svg").exists()
    assert (tmp_path / "performance" / "unheard-of.svg").exists()


@pytest.mark.parametrize(
    "bars", [[], [Bar("<a> & b", "2", 2.0, 1.0, (1.0, 9.0), holds=False), Bar("c", "0", 0.0, 5.0)]]
)
def test_a_bar_chart_is_valid_svg_whatever_its_texts(bars: list[Bar]) -> None:
    root = ET.fromstring(bar_chart(bars))  # noqa: S314  # our own text
    assert len(root.findall("{*}rect")) == 1 + len(bars)


def test_a_flame_graph_shows_callers_below_their_callees_and_leaves_out_what_is_narrow() -> None:
    root = ET.fromstring(flame_graph({"a;b<c>": 600, "a;d": 399, "e": 1}))  # noqa: S314  # our own text
    titles = {
        title.text: float(rectangle.attrib["y"])
        for group in root.findall(".//{*}g")
        for title, rectangle in zip(group.findall("{*}title"), group.findall("{*}rect"), strict=True)
    }
    assert set(titles) == {"all: 100.0%", "a: 99.9%", "b<c>: 60.0%", "d: 39.9%"}
    assert titles["b<c>: 60.0%"] < titles["a: 99.9%"] < titles["all: 100.0%"]
    assert ET.fromstring(flame_graph({})) is not None  # noqa: S314  # our own text
