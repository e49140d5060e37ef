"""Background work: the due-work worker and its jobs, due times, backoff and circuit breaker, detached tasks.

May import `domain`, `service.common_types`, `service.provider_port` and `service.proxy.call_deadline`.
"""
