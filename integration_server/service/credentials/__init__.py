"""Handing out credentials that work: cipher, cache, refresher and its failure policy.

May import `domain`, `service.common_types`, `service.provider_port` and integrations and background.
"""
