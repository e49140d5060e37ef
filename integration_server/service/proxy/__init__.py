"""The API proxy: calls to providers' APIs on behalf of backends, with rate limits and fair queueing.

May import `domain`, `service.common_types`, `service.provider_port` and the packages integrations, credentials and
background.
"""
