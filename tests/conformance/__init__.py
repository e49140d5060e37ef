"""The conformance suite of providers, against a server that simulates the provider: docs/adding-a-provider.md, 4."""
