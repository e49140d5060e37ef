"""Reading and changing integrations, and the store that keeps them.

May import `domain`, `service.common_types`, `service.provider_port` and background.
"""
