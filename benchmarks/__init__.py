"""How fast the server is, as ratios of two figures of one run: docs/benchmarks.md."""

import os

# gRPC's handlers around fork() complain while calls are under way. PostgreSQL is forked, to run as another user. gRPC
# looks at this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
