"""What operators read across users: integrations, due work and the audit log.

May import `domain`, `service.common_types`, `service.provider_port`, the credential cipher, the page tokens and the
ports of integrations, and the port of due work.
"""
