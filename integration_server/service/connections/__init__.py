"""Connections of accounts: OAuth flow, API keys, account linking, revocation.

May import `domain`, `service.common_types`, `service.provider_port`, audit, credentials, integrations and background.
"""
