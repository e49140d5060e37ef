"""Integration types: the declaration of each provider, and the OAuth 2 and HTTP clients that call it.

The docstring of each provider's module lists facts with their source and confidence: [H] the provider's own
documentation or software; [M] secondary sources; [K] general knowledge, not confirmed and the first thing to check when
something does not work. A fact that was checked again later than the others ends in its day: [H 2026-11-29]. What ends
at a known time is data as well: `BaseProvider.expiring_facts`.
"""
