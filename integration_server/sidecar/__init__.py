"""The HTTP edge for browsers that providers send back. It is only a client of the RPCs, over gRPC."""
