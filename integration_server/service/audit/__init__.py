"""The audit trail: records which caller did what to which integration.

May import `domain`, and of `service`: `common_types`.
"""
