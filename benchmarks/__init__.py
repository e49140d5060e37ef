"""Benchmarks of the server, which compare it with a reference in the same run: docs/benchmarks.md."""

import os

# PostgreSQL is started with fork(), to run as another user, and gRPC's fork handlers log errors during calls. gRPC
# reads the variable when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
