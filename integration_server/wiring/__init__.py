"""Builds the parts that need selection by settings, files or optional packages. Only bootstrap and the CLI use it."""
