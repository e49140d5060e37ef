"""Work that the server does when it is due: worker, due times, detached tasks, backoff.

May import `domain`, `service.common_types`, `service.provider_port` and integrations.
"""
