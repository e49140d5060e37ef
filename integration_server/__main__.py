"""The entry point of `python -m integration_server`."""

from integration_server.cli import main

main()
