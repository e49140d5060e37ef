"""Connections of accounts: OAuth flow, API keys, account linking, revocation.

May import `domain`, and of `service`: `common_types`, `provider_port`, `audit`, `background`,
`credentials.credential_cipher`, `integrations.ports` and `oauth_clients.oauth_client_directory`.
"""
