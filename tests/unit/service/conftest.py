"""Fixtures of the service over fakes. A test that needs another configuration builds its own `FakeSystem`."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.system import CONFIRMING, FakeSystem


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem()
    async with system.tasks:
        yield system


@pytest.fixture
async def confirming_system() -> AsyncIterator[FakeSystem]:
    """A system in which a callback without a user has to be confirmed, as in production."""
    system = FakeSystem(dict(CONFIRMING))
    async with system.tasks:
        yield system
