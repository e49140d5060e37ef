"""The commands. `program.py` is their command line; `serve`, whose processes keep what they import, runs without it."""
