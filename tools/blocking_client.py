"""Writes the client for threads (`client/blocking.py`) from the one for asyncio (`client/aio.py`).

    make blocking-client                       writes the file
    python -m tools.blocking_client --check    only compares, and exits with 1 if it differs

The two clients do the same, and differ in the words that this table has. What differs in its behaviour (locks, streams,
transports) is in `store.py`, `watcher.py` and `transport.py`.
"""

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "integration_server" / "client" / "aio.py"
TARGET = SOURCE.with_name("blocking.py")

_REPLACEMENTS = (
    # Texts
    (
        r'\A"""The client for asyncio: (.*?)"""',
        r'"""The client: \1"""\n\n# Generated from aio.py by `make blocking-client`.',
    ),
    (
        r"A client of the server for asyncio\. It belongs to the event loop of its first call\.",
        "A client of the server. Threads share it.",
    ),
    # Types
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    # Statements
    (r"\basync (?=def|for|with)", ""),
    (r"\bawait settled\(((?:[^()]|\([^()]*\))*)\)", r"\1"),
    (r"\bawait ", ""),
    (r"\ba(?=(?:iter|next|close)\()", ""),
    (r"\b__a(?=(?:enter|exit|iter)__)", "__"),
    # Functions
    (r"\bimport asyncio\b", "import threading"),
    (r"\basyncio\.Lock\b", "threading.Lock"),
    (r"\basyncio\.sleep\b", "time.sleep"),
)


def blocking(source: str) -> str:
    """Return the blocking form of a module for asyncio, formatted."""
    for pattern, replacement in _REPLACEMENTS:
        source = re.sub(pattern, replacement, source)
    # F401: imports for asyncio. UP028, C416: `yield from` and `list()`, which asyncio does not have.
    for command in (["check", "--select", "F401,I,UP028,C416", "--fix", "--unsafe-fixes"], ["format"]):
        source = subprocess.run(
            [str(Path(sys.executable).with_name("ruff")), *command, "--quiet", "--stdin-filename", str(TARGET), "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
            cwd=PROJECT,
            timeout=60,
        ).stdout
    return source


def main() -> int:
    """Write or compare the file. Returns the exit code."""
    fresh = blocking(SOURCE.read_text())
    if fresh == TARGET.read_text():
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{TARGET.relative_to(PROJECT)} is not what aio.py says: run `make blocking-client`", file=sys.stderr)
        return 1
    TARGET.write_text(fresh)
    print(f"wrote {TARGET.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
