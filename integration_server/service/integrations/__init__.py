"""Integrations: listing, reading and updating them, page tokens, and the port of the store.

May import `domain`, `service.common_types`, `service.provider_port`, the credential cipher and the port of the
revocation outbox.
"""
