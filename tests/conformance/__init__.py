"""One suite that every provider passes, against a server that plays that provider: docs/adding-a-provider.md, 4."""
