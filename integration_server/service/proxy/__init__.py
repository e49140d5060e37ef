"""The API proxy: calls to providers' APIs on behalf of backends, with rate limits and fair queueing.

May import `domain`, and of `service`: `common_types`, `provider_port`, `request_body`, `background`, `credentials`
and `integrations.ports`.
"""
