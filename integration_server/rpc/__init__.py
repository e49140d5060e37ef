"""The gRPC edge: decode, call one use case, encode. Errors become statuses in one place."""
