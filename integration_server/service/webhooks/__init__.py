"""Webhooks: ingestion, routing, secrets, and delivery to consumers.

May import `domain`, and of `service`: `common_types`, `lookup_cache`, `provider_port`,
`credentials.credential_cipher`, `integrations` and `oauth_clients.oauth_client_directory`.
"""
