"""Changes of integrations: the change feed's reader, and the event stream for watchers.

May import `domain`, and of `service`: `common_types`, `provider_port` and `credentials.credential_cipher`.
"""
