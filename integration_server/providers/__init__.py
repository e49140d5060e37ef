"""Integration types: the declaration of each provider, and the OAuth 2 and HTTP clients that call it.

`catalogue/*.toml` declare the built-in providers, and `catalogue/bases/*.toml` what a family has in common. A module
remains for behaviour that the language cannot describe; its first line states the difference.

The first comment of a declaration lists facts with their source and confidence, and so does the docstring of a webhook
scheme: [H] the provider's own documentation or software; [M] secondary sources; [K] general knowledge, not confirmed
and the first thing to check when something does not work. A fact that was checked again later than the others ends in
its day: [H 2026-11-29]. What ends at a known time is data as well: `ends`.
"""
