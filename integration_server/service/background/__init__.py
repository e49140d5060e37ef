"""Background work: the due-work worker and its jobs, backoff and circuit breaker, detached tasks.

May import `domain`, and of `service`: `common_types` and `provider_port`.
"""
