"""The audit trail: who did what to which integration.

May import `domain`, `service.common_types`, `service.provider_port` and no other service package.
"""
