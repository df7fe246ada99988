"""What a WebP file holds before its pixels (RFC 9649)."""

from __future__ import annotations

import struct
from pathlib import Path

EXTENDED_ALPHA = 0x10
EXTENDED_ANIMATION = 0x02
LOSSLESS_ALPHA = 1 << 28


def is_animated(start: bytes) -> bool:
    """Whether these first 21 bytes, or more, are those of an animation."""
    is_extended = start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) > 20
    return is_extended and bool(start[20] & EXTENDED_ANIMATION)


def is_opaque(path: Path) -> bool:
    """Whether the file declares that it has no alpha; False for anything that is not WebP.

    Decoders give lossless images an alpha channel whatever the file says.
    """
    with path.open("rb") as file:
        start = file.read(25)
    if len(start) < 25 or start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return False
    kind = start[12:16]
    if kind == b"VP8L":
        return not struct.unpack("<I", start[21:25])[0] & LOSSLESS_ALPHA
    return kind == b"VP8 " or (kind == b"VP8X" and not start[20] & EXTENDED_ALPHA)
