"""Whether an OpenEXR file is whole (OpenEXR File Layout): the decoder leaves what is missing black."""

from __future__ import annotations

import struct

MAGIC = b"\x76\x2f\x31\x01"
OTHERS = 0x800 | 0x1000
"""Flags of files that are deep or of several parts; their chunks are counted otherwise."""
TILED = 0x200
LINES = (1, 1, 1, 16, 32, 16, 32, 32, 32, 256)
"""Scan lines in a chunk, by compression: none, RLE, ZIPS, ZIP, PIZ, PXR24, B44, B44A, DWAA, DWAB."""


def is_cut_off(data: bytes) -> bool:
    """Whether scan lines or tiles are missing at the end of the file; False if it is of another kind."""
    if not data.startswith(MAGIC) or len(data) < 8:
        return False
    (flags,) = struct.unpack_from("<I", data, 4)
    is_tiled = bool(flags & TILED)
    if flags & OTHERS:
        return False
    try:
        attributes, begin = _attributes(data)
        count = _count(attributes, is_tiled=is_tiled)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, struct.error):
        return False  # the decoder tells
    place = 16 if is_tiled else 4  # of a chunk's size, after where the chunk lies in the picture
    end = begin + 8 * count
    if count < 1 or len(data) < end:
        return count > 0
    offsets = struct.unpack_from(f"<{count}Q", data, begin)
    if all(offsets):
        return _end_of_chunk(data, max(offsets), place) > len(data)
    if is_tiled:  # they may come in any order
        return True
    for _ in offsets:  # written last, so that a program that crashed has left zeros
        end = _end_of_chunk(data, end, place)
    return end > len(data)


def _count(attributes: dict[bytes, bytes], *, is_tiled: bool) -> int:
    """Chunks of the picture in full size; smaller ones, if there are any, come after it.

    Raises:
        KeyError, IndexError, ZeroDivisionError, struct.error: the attributes tell no size.
    """
    left, top, right, bottom = struct.unpack("<4i", attributes[b"dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    if not is_tiled:
        return -(-height // LINES[attributes[b"compression"][0]])
    across, down = struct.unpack_from("<2I", attributes[b"tiles"])
    return -(-width // across) * -(-height // down)


def _attributes(data: bytes) -> tuple[dict[bytes, bytes], int]:
    """The header's attributes by name, and where it ends."""
    found, position = {}, 8
    while (end := data.index(b"\0", position)) > position:
        size_at = data.index(b"\0", end + 1) + 1
        (size,) = struct.unpack_from("<I", data, size_at)
        found[data[position:end]] = data[size_at + 4 : size_at + 4 + size]
        position = size_at + 4 + size
    return found, position + 1


def _end_of_chunk(data: bytes, offset: int, place: int) -> int:
    """Where a chunk ends: after its header, whose `place` holds a size, and as many bytes."""
    begin = offset + place + 4
    if begin > len(data):
        return begin
    return begin + struct.unpack_from("<I", data, begin - 4)[0]
