"""Health checks of integrations and their history.

May import `domain`, and of `service`: `common_types`, `provider_port`, `background`, `credentials` and
`integrations`.
"""
