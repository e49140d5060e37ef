"""`python -m benchmarks`: both benchmarks, or one of them with options. Exit code 1 when a bound is broken."""

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import proactive_refresh, slow_provider
from benchmarks.harness import NotMeasured, Result, report
from benchmarks.system import DatabaseKind

Measure = Callable[[Progress], Coroutine[Any, Any, Result]]


def end(all_hold: bool) -> None:
    """Tell by the exit code whether every bound held."""
    raise typer.Exit(0 if all_hold else 1)


app = typer.Typer(
    help="Benchmarks of the server, each with the bounds that it must keep: docs/benchmarks.md. Without a name: all.",
    result_callback=end,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Database = Annotated[DatabaseKind, typer.Option(help="Where the servers keep everything.")]
Rate = Annotated[
    float,
    typer.Option(min=1, help="RPCs in a second at each system, whether or not the earlier ones were answered."),
]
Seconds = Annotated[float, typer.Option(min=0.5, help="Length of a phase: a p99 of each RPC needs hundreds of them.")]
RatioBound = Annotated[float, typer.Option("--bound", help="The p99 of an RPC may be so many times its reference.")]


@app.callback(invoke_without_command=True)
def run_all(context: typer.Context) -> bool:
    """Run all of them with their defaults, unless one is named."""
    if context.invoked_subcommand is not None:
        return True
    all_hold = [run_slow_provider(), run_proactive_refresh()]
    return all(all_hold)


@app.command("slow-provider")
def run_slow_provider(
    database: Database = DatabaseKind.POSTGRES,
    refreshes: Annotated[int, typer.Option(min=1, help="Refreshes that hang at once.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Phases, each beside a system without them.")] = 5,
    seconds: Seconds = 20,
    rate: Rate = 50,
    bound: RatioBound = 2,
) -> bool:
    """Refreshes that the provider never answers delay no other RPC."""
    plan = slow_provider.Plan(database, refreshes, rounds, seconds, rate, bound)
    return _run("slow-provider", slow_provider.__doc__, plan, partial(slow_provider.measure, plan))


@app.command("proactive-refresh")
def run_proactive_refresh(
    database: Database = DatabaseKind.POSTGRES,
    integrations: Annotated[int, typer.Option(min=1, help="Tokens that expire in the same minute.")] = 10_000,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time over which their refreshes fall due.")] = 7,
    servers: Annotated[int, typer.Option(min=1, help="Server processes that share the work.")] = 1,
    provider_delay: Annotated[float, typer.Option(min=0, help="Seconds that the provider takes for a refresh.")] = 0.1,
    seconds: Seconds = 20,
    rate: Rate = 50,
    bound: RatioBound = 2,
) -> bool:
    """Tokens that expire in the same minute are all refreshed before they do, and nobody notices."""
    plan = proactive_refresh.Plan(database, integrations, minutes, servers, provider_delay, seconds, rate, bound)
    return _run("proactive-refresh", proactive_refresh.__doc__, plan, partial(proactive_refresh.measure, plan))


def _run(name: str, what: str | None, plan: slow_provider.Plan | proactive_refresh.Plan, measure: Measure) -> bool:
    console = Console()
    console.rule(f"{name} on {plan.database}")
    console.print(" ".join((what or "").split()), highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=1,  # in the process that measures
        transient=True,
    ) as progress:
        try:
            result = uvloop.run(measure(progress))
        except NotMeasured as error:
            console.print(f"[red]NOT MEASURED[/]  {error}")
            return False
    return report(console, f"{name}-{plan.database}", asdict(plan), result)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
