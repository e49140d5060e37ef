"""The entry point of `python -m integration_server`."""

import gc

# What is imported stays: collections meanwhile find nothing, and take a fifth of the time. `freeze_gc` excludes it.
gc.disable()

from integration_server.cli import main  # noqa: E402  # see above

gc.enable()

main()
