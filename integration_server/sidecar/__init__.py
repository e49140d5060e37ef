"""The HTTP server for browsers and providers: OAuth callback, webhooks, probes. A client of the RPCs, over gRPC."""
