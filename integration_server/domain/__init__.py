"""What the words mean: integrations, credentials, health and errors, as frozen values. No I/O."""
