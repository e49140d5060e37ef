"""How fast the server is, as ratios of two figures of one run: docs/benchmarks.md."""
