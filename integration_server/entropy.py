"""Detects keys that were not generated at random: zeros, counted bytes, a repeated pattern, text.

The measure is a description length (Rissanen 1978): how many bits a simple code needs for the key. Each model below is
a prefix code, so at most one in 2^k of all keys has a description that is k bits shorter than the key itself (Kraft's
inequality). A key is weak if one of the models saves 40 bits; over the six models, a random key is refused with
a probability of at most 6 * 2^-40, or one in 180 billion. A key that is derived from a password by a hash is not
detected: it looks random to everybody who does not know the password.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

_MIN_SAVED_BITS = 40
_PRIOR_COUNT = 1 / 16  # of each byte, before any has been seen: a small one expects few different bytes
_TEXT = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r")


def is_weak_key(key: bytes) -> bool:
    """Whether the key has a short description, so that it cannot be random."""
    return min(_description_lengths(key)) <= 8 * len(key) - _MIN_SAVED_BITS


def _description_lengths(key: bytes) -> Iterator[float]:
    """The length of the key's description under each model, in bits."""
    steps = _changes(key, lambda previous, byte: (byte - previous) % 256)
    yield _frequency_bits(key)  # few different bytes
    yield _frequency_bits(steps)  # counting, in any step
    yield _frequency_bits(_changes(steps, lambda previous, byte: (byte - previous) % 256))
    yield _frequency_bits(_changes(key, lambda previous, byte: byte ^ previous))
    yield 8 * _period(key) + math.log2(max(1, len(key)))
    yield len(key) * math.log2(len(_TEXT)) if _TEXT.issuperset(key) else math.inf


def _changes(key: bytes, change: Callable[[int, int], int]) -> bytes:
    """The first byte, and then how each byte differs from the previous one: as many keys as results."""
    return key[:1] + bytes(change(previous, byte) for previous, byte in pairwise(key))


def _frequency_bits(key: bytes) -> float:
    """The length under a code that learns the frequencies of the bytes (a Pólya urn)."""
    counts: Counter[int] = Counter()
    bits = 0.0
    for position, byte in enumerate(key):
        bits -= math.log2((counts[byte] + _PRIOR_COUNT) / (position + 256 * _PRIOR_COUNT))
        counts[byte] += 1
    return bits


def _period(key: bytes) -> int:
    """The length of the shortest pattern whose repetition the key is; the last repetition may be incomplete."""
    return next(period for period in range(1, len(key) + 1) if key[period:] == key[:-period])
