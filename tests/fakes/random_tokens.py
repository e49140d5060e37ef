"""Tokens that are unique within a test and the same in every run."""

import itertools


class CountingTokens:
    """A `RandomToken` that counts. Its tokens have 43 characters, the minimum for a PKCE verifier (RFC 7636 §4.1)."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.issued: list[str] = []

    def __call__(self) -> str:
        self.issued.append(f"name-{next(self._numbers):038}")
        return self.issued[-1]
