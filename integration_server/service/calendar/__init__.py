"""Typed methods of Google Calendar.

May import `domain`, `service.common_types`, `service.provider_port` and proxy.
"""
