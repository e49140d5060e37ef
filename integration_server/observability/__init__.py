"""Observability: the metrics of all processes of a server.

`metrics.py` declares them, and keeps the numbers of its process; code that has something to record gets a plain
function. `snapshots.py` gives a copy of the numbers to whoever connects to the process's Unix socket, `merging.py` adds
up the copies of all processes, and `listener.py` serves the sums.

Imports nothing of ours.
"""
