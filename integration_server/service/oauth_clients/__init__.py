"""OAuth clients: their rows, which provider an integration uses, and which of two secrets the provider accepts.

May import `domain`, and of `service`: `common_types`, `lookup_cache`, `provider_port`, `background`,
`connections.revocation_ports`, `credentials.credential_cipher`, `integrations.page_tokens` and
`webhooks.webhook_secrets`.
"""
