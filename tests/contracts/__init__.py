"""Contract tests, which every implementation of a port passes."""
