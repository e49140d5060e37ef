"""Names that are unlike each other, and the same in every run."""

import itertools


class CountingTokens:
    """A `RandomToken` that counts: of 43 characters, as a PKCE verifier must have (RFC 7636 §4.1)."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.given: list[str] = []

    def __call__(self) -> str:
        self.given.append(f"name-{next(self._numbers):038}")
        return self.given[-1]
