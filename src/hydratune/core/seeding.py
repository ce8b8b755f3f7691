"""Seeds. Everything random is a pure function of what it belongs to, so no generator state is carried or saved."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part: seeds of neighbouring steps or names share nothing."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
