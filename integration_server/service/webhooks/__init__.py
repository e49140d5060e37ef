"""Webhooks: ingestion, secrets, and delivery to consumers.

May import `domain`, `service.common_types`, `service.provider_port` and the packages integrations, credentials and
background.
"""
