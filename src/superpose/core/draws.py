"""Numbers that are drawn: pure functions of a key, so that whoever asks again is told the same."""

import hashlib


def random_bits(*key: int | str) -> int:
    """64 bits that depend on nothing but the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
