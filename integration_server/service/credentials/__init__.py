"""Valid credentials: service, cipher, lookup, and the refresher with its lease, commit and failure policy.

May import `domain`, and of `service`: `common_types`, `provider_port`, `background`, `connections.ports`,
`connections.revocation_ports` and `integrations.ports`.
"""
