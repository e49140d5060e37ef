"""The Integration Server: connects users' third-party accounts and hands out credentials that work."""
