"""Fixtures of the integration tests."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.loop_hold.meter import HoldRecorder, LoopHolds


@pytest.fixture
def holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopHolds:
    """Measures the loop of this process: asyncio's, whose callbacks its handles run."""
    handle: Any = asyncio.Handle
    monkeypatch.setattr(handle, "_run", HoldRecorder(tmp_path / "test.hold").measure(handle._run))
    return LoopHolds(tmp_path)
