"""docs/performance.md: the figures of `make bench` and its plots, written from the files with the raw figures.

Nothing is typed by hand: the page has what the last runs have measured, and names the machine of each.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.charts import Bar, bar_chart, flame_graph
from benchmarks.flame_graph import KINDS, folded_path, read_stacks

_HEADER = """\
# Performance

This page is written by `make bench ARGS=report` from the results of the last runs of `make bench`;
[benchmarks.md](benchmarks.md) describes how each figure is measured. Each figure is compared with a reference that is
measured in turn with it, in the same run on the same machine, so that the ratios say more than the times. Where a
figure has rounds, it is their median, and the spread is their smallest and largest value.

Some figures are exact, and tests assert them:
- the SQL statements of a call, none for a hit, one for a miss, a list and a batch:
  `tests/integration/storage/test_statement_counts.py`;
- no RPC for the calls of a provider over three lifetimes of a token, by clients with `WatchCredentials` through
  google-auth, azure-core and httpx: `tests/end_to_end/test_client_adapters.py`.
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page: the benchmarks whose figures it has, by the names of their commands."""

    title: str
    benchmarks: tuple[str, ...]


SECTIONS = (
    Section("`GetCredentials` from the cache", ("hit",)),
    Section("`GetCredentials` past the cache", ("miss",)),
    Section("Lists, single integrations and provider calls", ("reads",)),
    Section("Webhooks", ("webhook",)),
    Section("`BatchGetCredentials`", ("batch",)),
    Section("Worker processes", ("workers",)),
    Section("Growth", ("growth", "memory")),
    Section("Invalidation on other replicas", ("invalidation-delay",)),
    Section("`WatchCredentials` and the client library", ("watch", "client")),
    Section("Start, idle memory and idle CPU", ("idle",)),
    Section("Background work", ("unit-costs", "proactive-refresh", "slow-provider")),
    Section("Peers", ("peers",)),
    Section(
        "Metrics, traces, events and hostile clients",
        ("metrics-cost", "traces", "event-fan-out", "existence-oracle", "hostile-clients"),
    ),
)


@dataclass(frozen=True, slots=True)
class _Run:
    """The file of a benchmark."""

    name: str
    content: Mapping[str, Any]

    @property
    def bars(self) -> Sequence[Bar]:
        return [
            Bar(
                _short(bound["text"]),
                bound["measured"],
                bound["value"],
                bound["limit"],
                bound["spread"] and tuple(bound["spread"]),
                bound["holds"],
            )
            for bound in self.content["bounds"]
            if bound.get("value") is not None and bound.get("limit")
        ]


def write_page(results: Path, page: Path) -> Sequence[Path]:
    """Write the page, and its plots into a folder of the same name. Returns the files that it was written from."""
    runs = {
        _name_of(path): _Run(_name_of(path), json.loads(path.read_text())) for path in sorted(results.glob("*.json"))
    }
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    parts = [_HEADER, *_machines(runs.values()), *_summary(runs)]
    used = set[str]()
    for section in (*SECTIONS, Section("Other benchmarks", tuple(sorted(runs)))):
        found = [runs[name] for name in section.benchmarks if name in runs and name not in used]
        used.update(run.name for run in found)
        if found:
            parts.append(f"## {section.title}\n")
        for run in found:
            parts += _section(run, plots)
    parts += _flames(plots)
    page.write_text("\n".join(parts).rstrip() + "\n")
    return sorted(results.glob("*.json"))


def _name_of(path: Path) -> str:
    """The name of the command: the file has that of the database too."""
    return path.stem.removesuffix("-postgres").removesuffix("-sqlite")


def _machines(runs: Iterable[_Run]) -> Iterator[str]:
    seen: dict[str, list[str]] = {}
    for run in runs:
        machine = {key: value for key, value in run.content["machine"].items() if key != "load_average"}
        seen.setdefault(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items()), []).append(
            run.name
        )
    yield "| machine | benchmarks |\n|---|---|"
    for description, names in seen.items():
        yield f"| {description} | {', '.join(names)} |"
    yield ""


def _summary(runs: Mapping[str, _Run]) -> Iterator[str]:
    yield "| figure and goal | measured | spread | holds | command |\n|---|---|---|---|---|"
    ordered = [name for section in SECTIONS for name in section.benchmarks]
    for name in (*(one for one in ordered if one in runs), *sorted(set(runs) - set(ordered))):
        for bound in runs[name].content["bounds"]:
            spread = bound.get("spread")
            text = f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else ""
            holds = "yes" if bound["holds"] else "**no**"
            yield f"| {_cell(bound['text'])} | {_cell(bound['measured'])} | {text} | {holds} | `{name}` |"
    yield ""


def _section(run: _Run, plots: Path) -> Iterator[str]:
    yield f"{run.content.get('description', '')}\n"
    parameters = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in run.content["parameters"].items())
    yield f"`make bench ARGS={run.name}`: {parameters}.\n"
    if run.bars:
        plot = plots / f"{run.name}.svg"
        plot.write_text(bar_chart(run.bars))
        yield f"![{run.name}: measured values in shares of their goals]({plots.name}/{plot.name})\n"
    if run.content["comparisons"]:
        yield "| RPC | p50, reference → load | p99, reference → load | median ratio of the p99 |\n|---|---|---|---|"
        for row in run.content["comparisons"]:
            p50, p99 = (
                f"{1000 * row[f'reference_{one}']:.1f} → {1000 * row[f'load_{one}']:.1f} ms" for one in ("p50", "p99")
            )
            yield f"| {row['name']} | {p50} | {p99} | {statistics.median(row['p99_ratios']):.2f} |"
        yield ""
    yield "| figure | value |\n|---|---|"
    for figure, value in run.content["figures"].items():
        yield f"| {_cell(figure)} | {_cell(value)} |"
    yield ""


def _flames(plots: Path) -> Iterator[str]:
    """The flame graphs of the last samples."""
    found = [kind for kind in KINDS if folded_path(kind).exists()]
    if not found:
        return
    yield "## Flame graphs\n"
    yield (
        "Where the CPU time of the server's event loop goes, sampled every millisecond of CPU time. Width is time,\n"
        "and a function is above its caller. The time of C code belongs to the Python function that called it.\n"
    )
    for kind in found:
        plot = plots / f"flame-{kind}.svg"
        plot.write_text(flame_graph(read_stacks(folded_path(kind))))
        yield f"A {kind}:\n\n![flame graph of a {kind}]({plots.name}/{plot.name})\n"


def _short(text: str) -> str:
    """The name of a bound: what precedes its colon."""
    return text.partition(":")[0]


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
