"""Stands in for uvloop in a server process that tests measure: asyncio's own loop, whose callbacks are Python objects.

It is found before uvloop, since its folder comes first in the PYTHONPATH of the process.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.loop_hold.meter import install_recorder

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine in a measured event loop."""
    install_recorder()
    return asyncio.run(main)
