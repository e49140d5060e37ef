"""Reads of operators across users: integrations, due work and the audit log.

May import `domain`, and of `service`: `common_types`, `provider_port`, `background.ports`,
`credentials.credential_cipher` and `integrations`.
"""
