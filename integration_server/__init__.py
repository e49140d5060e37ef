"""The Integration Server: connects users' third-party accounts and returns valid credentials for them."""
