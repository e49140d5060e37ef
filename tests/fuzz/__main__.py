"""`make test-fuzz`: CASES (default 100,000) cases, half on each database, from SEED (default random)."""

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # as in tests/conftest.py

from integration_server.storage.schema import migrate
from tests.end_to_end.processes import run_server_process
from tests.fuzz.run import ALLOWED_GROWTH, SETTINGS, Finding, Fuzzer, IssuingSandbox, Report
from tests.loop_hold.meter import LoopHolds
from tests.postgres import run_postgres

MIB = 1024 * 1024


async def fuzz(name: str, database_url: str, cases: int, seed: int) -> None:
    """Fuzz a server on one database."""
    await migrate(database_url)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    sandbox = IssuingSandbox()
    begin = time.monotonic()

    def print_progress(report: Report) -> None:
        seconds = time.monotonic() - begin
        memory = f"{report.memory_before / MIB:.0f} MiB after warm-up, {report.growth / MIB:+.1f} MiB since"
        held = f"longest hold {report.longest_hold.seconds * 1000:.1f} ms"
        print(
            f"{name}: {report.cases} cases, {report.cases / seconds:.0f} a second; server: {memory}, {held}", flush=True
        )

    try:
        holds = LoopHolds(directory)
        settings = {**SETTINGS, **holds.environment}
        async with run_server_process(directory, database_url, sandbox=sandbox, forked=False, **settings) as system:
            report = await Fuzzer(system, sandbox, holds).run(cases, seed, print_progress)
        print(f"{name}: {report.longest_hold} is the longest hold, for one of {report.held_by}")
        print(
            f"{name}: " + ", ".join(f"{outcome} {count}" for outcome, count in report.outcomes.most_common()),
            flush=True,
        )
        if report.growth > ALLOWED_GROWTH:
            raise Finding(f"the server's memory grew by {report.growth / MIB:.1f} MiB")
    finally:
        shutil.rmtree(directory)


def main() -> None:
    """Fuzz servers on both databases."""
    cases = int(os.environ.get("CASES") or 100_000)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}: make test-fuzz CASES={cases} SEED={seed}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(fuzz("SQLite", f"sqlite:///{directory}/integrations.db", cases - cases // 2, seed))
        with run_postgres() as postgres, postgres.new_database() as url:
            asyncio.run(fuzz("PostgreSQL", url, cases // 2, seed + cases))
    except Finding as found:
        sys.exit(f"found: {found}")


if __name__ == "__main__":
    main()
