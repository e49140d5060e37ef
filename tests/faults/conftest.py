"""Options of the long fault tests: rounds, seed, and progress. `make test-faults` runs them."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`ROUNDS=` and `SEED=` of `make test-faults`."""
    parser.addoption("--rounds", type=int, default=None, help="rounds of each test, in place of its own number")
    parser.addoption("--seed", type=int, default=None, help="what chance follows; the same seed makes the same choices")


def pytest_configure(config: pytest.Config) -> None:
    """Choose one seed for the whole run."""
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(1_000_000)


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, so that a failure can be repeated."""
    return f"faults: SEED={config.option.seed}"


@dataclass(slots=True)
class FaultTrial:
    """The rounds and the progress of one test."""

    name: str
    seed: int
    asked_rounds: int | None
    capture: "pytest.CaptureFixture[str]"
    begin: float = field(default_factory=time.monotonic)

    def rounds(self, usual: int) -> range:
        """The numbers of the rounds: as many as requested, or the default of the test."""
        return range(1, (self.asked_rounds or usual) + 1)

    def rng(self, number: int) -> random.Random:
        """The random numbers of one round, which depend only on the seed, the test and the round."""
        return random.Random(f"{self.seed} {self.name} {number}")

    def report(self, text: str) -> None:
        """Print the progress."""
        with self.capture.disabled():
            print(f"\n  {time.monotonic() - self.begin:5.0f} s  {self.name}: {text}", end="", flush=True)


@pytest.fixture
def trial(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Iterator[FaultTrial]:
    """The trial of this test."""
    options = request.config.option
    trial = FaultTrial(request.node.name, options.seed, options.rounds, capfd)
    trial.report(f"SEED={options.seed}")
    yield trial
    trial.report("over")
