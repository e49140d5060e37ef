"""Observability: the metrics of all processes of a server, and what each call leaves behind.

`metrics.py` declares them, and keeps the numbers of its process; code that has something to record gets a plain
function. `snapshots.py` gives a copy of the numbers to whoever connects to the process's Unix socket, `merging.py` adds
up the copies of all processes, and `listener.py` serves the sums. `observed_calls.py` has the ids of calls and the
access log, `spans.py` and `tracing.py` have traces.

Imports nothing of ours.
"""
