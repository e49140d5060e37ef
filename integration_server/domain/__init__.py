"""The domain: integrations, credentials, callers and errors, all frozen, and the rules about them. No I/O."""
