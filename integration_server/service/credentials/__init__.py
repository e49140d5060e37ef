"""Credentials that work: service, cipher, cache, and the refresher with its lease, commit and failure policy.

May import `domain`, `service.common_types`, `service.provider_port`, integrations, background and the port of the
revocation outbox.
"""
