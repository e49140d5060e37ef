"""Changes of integrations: the change feed's reader, and the event stream for watchers.

May import `domain`, `service.common_types`, `service.provider_port`, and the token cipher of `service.credentials`.
"""
