"""Connecting accounts: OAuth flow, API keys, account linking, redirect allow-list, revocation.

May import `domain`, `service.common_types`, `service.provider_port` and credentials, integrations and background.
"""
