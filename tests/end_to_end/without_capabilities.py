"""Runs Python without the capabilities of root: `python -m tests.end_to_end.without_capabilities [ARGUMENT…]`.

Root may look into every process. Without capabilities, root's processes are as protected from each other as those of
any other user.
"""

import ctypes
import os
import resource
import sys

_PR_CAPBSET_DROP = 24  # linux/prctl.h
_CAPABILITIES = range(64)  # linux/capability.h has fewer; the kernel refuses unknown ones


def main() -> None:
    """Drop all capabilities from the set that a new program can have, and run Python with the arguments."""
    for capability in _CAPABILITIES:  # other users have none to drop
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # the program must lower it by itself
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
