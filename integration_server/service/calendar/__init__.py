"""Typed methods of Google Calendar.

May import `domain`, and of `service`: `credentials` and `proxy.calls`.
"""
