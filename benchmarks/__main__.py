"""`python -m benchmarks`: run all benchmarks, or one with options. The exit code is 1 if a bound is broken."""

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    batch,
    capacity,
    event_fan_out,
    existence_oracle,
    flame_graph,
    growth,
    hit,
    hostile_clients,
    idle,
    invalidation_delay,
    memory,
    observation_cost,
    performance_page,
    proactive_refresh,
    reads,
    slow_provider,
    unit_costs,
    watch,
    workers,
)
from benchmarks.attacks import ATTACKS
from benchmarks.harness import RESULTS, NotMeasured, Result, report
from benchmarks.system import DatabaseKind

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PAGE = Path("docs/performance.md")

Measure = Callable[[Progress], Coroutine[Any, Any, Result]]


def exit_with_result(all_hold: bool) -> None:
    """Exit with code 0 if every bound holds, else 1."""
    raise typer.Exit(0 if all_hold else 1)


app = typer.Typer(
    help="Benchmarks of the server with their bounds: docs/benchmarks.md. Without a command, all of them run.",
    result_callback=exit_with_result,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Database = Annotated[DatabaseKind, typer.Option(help="The database of the servers.")]
Rate = Annotated[
    float,
    typer.Option(min=1, help="RPCs per second to each system, whether or not earlier ones have completed."),
]
Seconds = Annotated[float, typer.Option(min=0.5, help="Length of a phase. A p99 needs hundreds of calls of each RPC.")]
Rounds = Annotated[int, typer.Option(min=1, help="Number of rounds; their median is judged.")]
ObservedCalls = Annotated[int, typer.Option("--calls", min=10, help="Calls of each kind in a round, to each system.")]
ObservationBound = Annotated[float, typer.Option("--bound", help="Maximum ratio of the CPU time with to without.")]
RatioBound = Annotated[float, typer.Option("--bound", help="Maximum ratio of an RPC's p99 to its reference.")]


@app.callback(invoke_without_command=True)
def run_all(context: typer.Context) -> bool:
    """Run all benchmarks with their defaults, unless a command is given."""
    if context.invoked_subcommand is not None:
        return True
    all_hold = [
        run_hit(),
        run_unit_costs(),
        run_growth(),
        run_memory(),
        run_slow_provider(),
        run_proactive_refresh(),
        run_existence_oracle(),
        run_event_fan_out(),
        run_hostile_clients(),
        run_metrics_cost(),
        run_traces_cost(),
        run_reads(),
        run_workers(),
        run_batch(),
        run_watch(),
        run_invalidation_delay(),
        run_idle(),
    ]
    return all(all_hold)


@app.command("all")
def run_short(
    rounds: Rounds = 3,
    integrations: Annotated[int, typer.Option(min=2_000, help="Integrations of the larger database.")] = 1_000_000,
    page: Annotated[Path, typer.Option(help="The page to write.")] = _PAGE,
) -> bool:
    """Run each benchmark in a short version, sample the flame graphs, and write docs/performance.md: ten minutes."""
    all_hold = [
        run_hit(rounds=rounds, seconds=5),
        run_unit_costs(),
        run_growth(integrations=integrations, rounds=rounds, calls=150),
        run_memory(integrations=integrations // 20),
        run_proactive_refresh(integrations=1_000, minutes=0.7, seconds=5),
        run_slow_provider(rounds=rounds, seconds=5),
        run_metrics_cost(rounds=rounds, calls=1_000),
        run_traces_cost(rounds=rounds, calls=1_000),
        run_reads(rounds=rounds, calls=300),
        run_workers(rounds=rounds, seconds=5),
        run_batch(rounds=rounds, calls=500),
        run_watch(rounds=rounds, seconds=5),
        run_invalidation_delay(),
        run_idle(rounds=rounds, seconds=5),
        run_event_fan_out(),
    ]
    write_flame_graphs()
    write_report(page=page)
    return all(all_hold)


@app.command("flame-graph")
def write_flame_graphs(seconds: Seconds = 8) -> bool:
    """Sample the call stacks of a hit and of a miss, as folded stacks in build/bench."""
    for path in uvloop.run(flame_graph.write_stacks(seconds)):
        Console().print(f"Stacks: {path}", highlight=False)
    return True


@app.command("capacity")
def print_capacity(
    costs: Annotated[Path, typer.Option(help="The raw figures of unit-costs; without them, the committed ones.")] = (
        RESULTS / "unit-costs-postgres.json"
    ),
) -> bool:
    """Print the table of docs/scaling.md: what installations of three sizes need."""
    typer.echo(capacity.table(capacity.read_costs(costs)))
    return True


@app.command("report")
def write_report(
    results: Annotated[Path, typer.Option(help="The folder of the raw figures.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page to write; its plots are in a folder of the same name.")] = _PAGE,
) -> bool:
    """Write docs/performance.md from the raw figures of the last runs."""
    for path in performance_page.write_page(results, page):
        Console().print(f"From {path}", highlight=False)
    return True


@app.command("slow-provider")
def run_slow_provider(
    database: Database = DatabaseKind.POSTGRES,
    refreshes: Annotated[int, typer.Option(min=1, help="Concurrent pending refreshes.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Number of phases.")] = 5,
    seconds: Seconds = 20,
    rate: Rate = 50,
    bound: RatioBound = 2,
) -> bool:
    """A provider that does not respond to refreshes delays no other RPC."""
    plan = slow_provider.SlowProviderPlan(database, refreshes, rounds, seconds, rate, bound)
    return run_benchmark("slow-provider", slow_provider.__doc__, plan, partial(slow_provider.measure, plan))


@app.command("metrics-cost")
def run_metrics_cost(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Rounds = 7,
    calls: ObservedCalls = 2_000,
    bound: ObservationBound = 1.05,
) -> bool:
    """Metrics, scraped every second, cost little CPU."""
    plan = observation_cost.ObservationCostPlan(database, rounds, calls, bound)
    measure = partial(observation_cost.measure_metrics, plan)
    return run_benchmark("metrics-cost", observation_cost.__doc__, plan, measure)


@app.command("traces")
def run_traces_cost(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Rounds = 7,
    calls: ObservedCalls = 2_000,
    bound: ObservationBound = 1.15,
) -> bool:
    """Traces of every call cost little CPU."""
    plan = observation_cost.ObservationCostPlan(database, rounds, calls, bound)
    return run_benchmark("traces", observation_cost.__doc__, plan, partial(observation_cost.measure_traces, plan))


@app.command("reads")
def run_reads(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 5,
    calls: Annotated[int, typer.Option(min=50, help="Calls of each kind in a round.")] = 1_000,
) -> bool:
    """Reads, calls to providers and webhooks cost hardly more CPU time than bare handlers."""
    plan = reads.ReadsPlan(database, rounds, calls)
    return run_benchmark("reads", reads.__doc__, plan, partial(reads.measure, plan))


@app.command("hit")
def run_hit(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Rounds = 7,
    seconds: Seconds = 5,
) -> bool:
    """Credentials from the cache cost little more than an RPC that does nothing."""
    plan = hit.HitPlan(database, rounds, seconds)
    return run_benchmark("hit", hit.__doc__, plan, partial(hit.measure, plan))


@app.command("batch")
def run_batch(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Annotated[int, typer.Option(min=1, help="Number of pairs of phases.")] = 5,
    calls: Annotated[int, typer.Option(min=10, help="Single calls of a phase.")] = 2_000,
    size: Annotated[int, typer.Option(min=1, max=1000, help="Requests of a batch.")] = 100,
    bound: Annotated[float, typer.Option(help="Minimum ratio of credentials per CPU second to single calls.")] = 20,
) -> bool:
    """A batch returns many times as many credentials per CPU second as single calls."""
    plan = batch.BatchPlan(database, rounds, calls, size, bound)
    return run_benchmark("batch", batch.__doc__, plan, partial(batch.measure, plan))


@app.command("watch")
def run_watch(
    rounds: Annotated[int, typer.Option(min=1, help="Number of pairs of phases.")] = 5,
    integrations: Annotated[int, typer.Option(min=100, help="Integrations that streams watch.")] = 100_000,
    share: Annotated[float, typer.Option(help="Share of them that changes in a second.")] = 0.01,
    seconds: Seconds = 10,
    bound: Annotated[float, typer.Option(help="Maximum ratio of the CPU of a delivery to an RPC without work.")] = 0.5,
) -> bool:
    """A delivery of `WatchCredentials` costs half as much CPU as an RPC that does nothing."""
    plan = watch.WatchPlan(rounds, integrations, share, seconds, bound)
    return run_benchmark("watch", watch.__doc__, plan, partial(watch.measure, plan))


@app.command("invalidation-delay")
def run_invalidation_delay(
    database: Database = DatabaseKind.POSTGRES,
    servers: Annotated[int, typer.Option(min=1, help="Replicas.")] = 2,
    count: Annotated[int, typer.Option("--workers", min=1, help="Workers of each.")] = 2,
    changes: Annotated[int, typer.Option(min=1, max=1000, help="Disconnects, and as many rotations.")] = 20,
    transaction_seconds: Annotated[
        float, typer.Option(min=0.5, help="Time for which another client has a transaction open meanwhile.")
    ] = 20,
) -> bool:
    """Every worker of every replica applies a disconnect or a rotation within a second."""
    plan = invalidation_delay.InvalidationPlan(database, servers, count, changes, transaction_seconds)
    measure = partial(invalidation_delay.measure, plan)
    return run_benchmark("invalidation-delay", invalidation_delay.__doc__, plan, measure)


@app.command("workers")
def run_workers(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Annotated[int, typer.Option(min=1, help="Number of phases.")] = 7,
    seconds: Seconds = 20,
    rate: Rate = 300,
    bound: Annotated[float, typer.Option(help="Maximum ratio of the CPU time with two workers to one.")] = 1.05,
) -> bool:
    """Two workers cost a call no more CPU than one."""
    plan = workers.WorkersPlan(database, rounds, seconds, rate, bound)
    return run_benchmark("workers", workers.__doc__, plan, partial(workers.measure, plan))


@app.command("idle")
def run_idle(
    database: Database = DatabaseKind.POSTGRES,
    rounds: Annotated[int, typer.Option(min=1, help="Number of starts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, help="Time without calls that is measured.")] = 30,
    count: Annotated[int, typer.Option("--workers", min=1, help="Workers of the server.")] = 2,
    bound: Annotated[float, typer.Option(help="Maximum ratio of each figure to its goal.")] = 1,
) -> bool:
    """The time until a worker serves, its memory, and the CPU that it uses without calls."""
    plan = idle.IdlePlan(database, rounds, seconds, count, bound)
    return run_benchmark("idle", idle.__doc__, plan, partial(idle.measure, plan))


@app.command("proactive-refresh")
def run_proactive_refresh(
    database: Database = DatabaseKind.POSTGRES,
    integrations: Annotated[int, typer.Option(min=1, help="Tokens that expire in the same minute.")] = 10_000,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time over which the refreshes become due.")] = 7,
    servers: Annotated[int, typer.Option(min=1, help="Server processes that share the work.")] = 1,
    provider_delay: Annotated[float, typer.Option(min=0, help="Seconds that the provider needs for a refresh.")] = 0.1,
    seconds: Seconds = 20,
    rate: Rate = 50,
    bound: RatioBound = 2,
) -> bool:
    """Tokens that expire in the same minute are all refreshed in time, without delaying other RPCs."""
    plan = proactive_refresh.ProactiveRefreshPlan(
        database, integrations, minutes, servers, provider_delay, seconds, rate, bound
    )
    return run_benchmark("proactive-refresh", proactive_refresh.__doc__, plan, partial(proactive_refresh.measure, plan))


@app.command("growth")
def run_growth(
    integrations: Annotated[int, typer.Option(min=2_000, help="Integrations in the larger database.")] = 1_000_000,
    smallest: Annotated[int, typer.Option(min=200, help="Integrations in the smaller database.")] = 1_000,
    rounds: Rounds = 3,
    calls: Annotated[int, typer.Option(min=5, help="Calls of each kind in a round, at each system.")] = 300,
    bound: Annotated[float, typer.Option(help="Maximum ratio of the median times.")] = 1.2,
) -> bool:
    """Neither the number of integrations nor a backlog of due rows makes calls and claims slower."""
    plan = growth.GrowthPlan(smallest, integrations, rounds, calls, bound)
    return run_benchmark("growth", growth.__doc__, plan, partial(growth.measure, plan))


@app.command("memory")
def run_memory(
    integrations: Annotated[int, typer.Option(min=1_000, help="Integrations of the larger database.")] = 1_000_000,
    smallest: Annotated[int, typer.Option(min=100, help="Integrations of the smaller database.")] = 1_000,
    bound: Annotated[float, typer.Option(help="Maximum ratio of the memory of the workers.")] = 1.3,
) -> bool:
    """Reading a million integrations once takes a worker hardly more memory than reading a thousand."""
    plan = memory.MemoryPlan(smallest, integrations, bound)
    return run_benchmark("memory", memory.__doc__, plan, partial(memory.measure, plan))


@app.command("unit-costs")
def run_unit_costs(
    integrations: Annotated[int, typer.Option(min=10, help="Integrations that are read and checked.")] = 1_000,
    tokens: Annotated[int, typer.Option(min=10, help="Tokens that the background worker refreshes.")] = 2_000,
    bound: Annotated[float, typer.Option(help="Minimum number of refreshes per second of the server's CPU.")] = 500,
) -> bool:
    """What a hit, a miss, a refresh and a health check cost the server and the database."""
    plan = unit_costs.UnitCostsPlan(integrations, tokens, bound)
    return run_benchmark("unit-costs", unit_costs.__doc__, plan, partial(unit_costs.measure, plan))


@app.command("existence-oracle")
def run_existence_oracle(
    database: Database = DatabaseKind.POSTGRES,
    calls: Annotated[int, typer.Option(min=100, help="Calls of each RPC.")] = 2_000,
    bound: Annotated[float, typer.Option(help="Highest accuracy of the classifier; guessing has 0.5.")] = 0.55,
) -> bool:
    """The response time does not tell another user's integration from one that does not exist."""
    plan = existence_oracle.ExistenceOraclePlan(database, calls, bound)
    return run_benchmark("existence-oracle", existence_oracle.__doc__, plan, partial(existence_oracle.measure, plan))


@app.command("event-fan-out")
def run_event_fan_out(
    streams: Annotated[int, typer.Option(min=1, help="Streams that get each event.")] = 200,
    other_streams: Annotated[int, typer.Option(min=0, help="Streams of another user.")] = 2_000,
    events: Annotated[int, typer.Option(min=20, help="Events.")] = 200,
    bound: Annotated[float, typer.Option(help="Maximum ratio of a message's cost to one encoding.")] = 0.5,
) -> bool:
    """An event costs little for each stream that gets it, and nothing for the streams of other users."""
    plan = event_fan_out.EventFanOutPlan(streams, other_streams, events, bound)
    return run_benchmark("event-fan-out", event_fan_out.__doc__, plan, partial(event_fan_out.measure, plan))


@app.command("hostile-clients")
def run_hostile_clients(
    database: Database = DatabaseKind.POSTGRES,
    attack: Annotated[list[str] | None, typer.Option(help="An attack; repeatable. Default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of pairs of phases for each attack.")] = 3,
    seconds: Seconds = 10,
    rate: Annotated[float, typer.Option(min=1, help="Calls of the victim per second.")] = 20,
    bound: RatioBound = 2,
) -> bool:
    """Hostile clients delay no other caller, and fill neither memory nor log."""
    attacks = attack or list(ATTACKS)
    if unknown := set(attacks) - set(ATTACKS):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(ATTACKS)}")
    plan = hostile_clients.HostileClientsPlan(database, attacks, rounds, seconds, rate, bound)
    return run_benchmark("hostile-clients", hostile_clients.__doc__, plan, partial(hostile_clients.measure, plan))


def run_benchmark(
    name: str,
    description: str | None,
    plan: "DataclassInstance",
    measure: Measure,
) -> bool:
    console = Console()
    database = getattr(plan, "database", DatabaseKind.SQLITE)
    console.rule(f"{name} on {database}")
    text = " ".join((description or "").split())
    console.print(text, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=1,  # low, because this process measures
        transient=True,
    ) as progress:
        try:
            result = uvloop.run(measure(progress))
        except NotMeasured as error:
            console.print(f"[red]NOT MEASURED[/]  {error}")
            return False
        except Exception:  # the other benchmarks still run, and the page has their figures
            console.print_exception()
            console.print(f"[red]FAILED[/]  {name}")
            return False
    return report(console, f"{name}-{database}", text, asdict(plan), result)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
