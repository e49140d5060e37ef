"""The audit trail: records which caller did what to which integration.

May import `domain`, `service.common_types`, `service.provider_port` and no other service package.
"""
