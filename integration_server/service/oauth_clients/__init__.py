"""OAuth clients: their rows, which provider an integration uses, and which of two secrets the provider accepts.

May import `domain`, `service.common_types`, `service.provider_port` and the packages audit, integrations, credentials
and background.
"""
