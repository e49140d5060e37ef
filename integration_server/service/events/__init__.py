"""The event stream of everything that happens to integrations.

May import `domain`, `service.common_types`, `service.provider_port` and no other service package.
"""
