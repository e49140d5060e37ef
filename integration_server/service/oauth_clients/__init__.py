"""OAuth clients: their rows, which provider an integration uses, and which of two secrets the provider accepts.

May import `domain`, and of `service`: `common_types`, `lookup_cache`, `provider_port`, `background`,
`connections.revocation_ports`, `credentials.credential_cipher` and `integrations.page_tokens`.
"""
