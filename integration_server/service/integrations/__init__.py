"""Integrations: listing, reading and updating them, page tokens, and the port of the store.

May import `domain`, and of `service`: `common_types`, `provider_port`, `background.ports`,
`connections.revocation_ports` and `credentials.credential_cipher`.
"""
