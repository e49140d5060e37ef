"""The domain values: integrations, credentials, health checks and errors. All are frozen. No I/O."""
