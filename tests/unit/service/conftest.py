"""The use cases over fakes. A test that wants another system than the usual builds its own `FakeSystem`."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.system import FakeSystem


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem()
    async with system.tasks:
        yield system


@pytest.fixture
async def careful_system() -> AsyncIterator[FakeSystem]:
    """As in production: who does not name the signed-in user has to confirm."""
    system = FakeSystem({"skip_confirmation": False})
    async with system.tasks:
        yield system
