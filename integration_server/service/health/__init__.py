"""Health checks of integrations and their history.

May import `domain`, `service.common_types`, `service.provider_port` and credentials, integrations and background.
"""
