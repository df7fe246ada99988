"""Whether an OpenEXR file is whole (OpenEXR File Layout): the decoder leaves what is missing black."""

from __future__ import annotations

import struct

MAGIC = b"\x76\x2f\x31\x01"
OTHERS = 0x200 | 0x800 | 0x1000
"""Flags of files that are tiled, deep, or of several parts; their chunks are counted otherwise."""
LINES = (1, 1, 1, 16, 32, 16, 32, 32, 32, 256)
"""Scan lines in a chunk, by compression: none, RLE, ZIPS, ZIP, PIZ, PXR24, B44, B44A, DWAA, DWAB."""


def is_cut_off(data: bytes) -> bool:
    """Whether scan lines are missing at the end of the file; False if it is of another kind."""
    if not data.startswith(MAGIC) or len(data) < 8 or struct.unpack_from("<I", data, 4)[0] & OTHERS:
        return False
    try:
        attributes, begin = _attributes(data)
        _, top, _, bottom = struct.unpack("<4i", attributes[b"dataWindow"])
        lines = LINES[attributes[b"compression"][0]]
    except (KeyError, IndexError, ValueError, struct.error):
        return False  # the decoder tells
    count = -(-(bottom - top + 1) // lines)
    end = begin + 8 * count
    if count < 1 or len(data) < end:
        return count > 0
    offsets = struct.unpack_from(f"<{count}Q", data, begin)
    if all(offsets):
        return _end_of_chunk(data, max(offsets)) > len(data)
    for _ in offsets:  # written last, so that a program that crashed has left zeros
        end = _end_of_chunk(data, end)
    return end > len(data)


def _attributes(data: bytes) -> tuple[dict[bytes, bytes], int]:
    """The header's attributes by name, and where it ends."""
    found, position = {}, 8
    while (end := data.index(b"\0", position)) > position:
        size_at = data.index(b"\0", end + 1) + 1
        (size,) = struct.unpack_from("<I", data, size_at)
        found[data[position:end]] = data[size_at + 4 : size_at + 4 + size]
        position = size_at + 4 + size
    return found, position + 1


def _end_of_chunk(data: bytes, offset: int) -> int:
    """Where a chunk ends: after the number of its first line, its size, and as many bytes."""
    if offset + 8 > len(data):
        return offset + 8
    return offset + 8 + struct.unpack_from("<I", data, offset + 4)[0]
