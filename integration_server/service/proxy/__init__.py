"""Calls to providers' APIs on behalf of backends: policy, rate limits, fair queueing.

May import `domain`, `service.common_types`, `service.provider_port` and credentials, integrations and background.
"""
