"""What a PNG file has before its pixels: size, depth and texts (PNG specification, 2nd edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OVERRULED = (b"sRGB", b"gAMA", b"cHRM")
"""Chunks that describe the colors if there is no profile."""
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PALETTE = 3
"""The color type of pictures with a palette."""
MOST_TEXT = 64 << 20  # total bytes; no workflow is that long, but small chunks inflate to any size


def png_header(path: Path) -> tuple[int, int, int, int] | None:
    """Width, height, bits per sample and color type; None if it is not a PNG file."""
    with path.open("rb") as file:
        start = file.read(26)
    if not start.startswith(SIGNATURE) or len(start) < 26:
        return None
    width, height, bits, color_type = struct.unpack(">IIBB", start[16:26])
    return width, height, bits, color_type


def has_opaque_palette(path: Path) -> bool:
    """Whether it is a PNG file with a palette that has no transparent colors.

    Decoders give a palette an alpha channel whatever the file says.
    """
    header = png_header(path)
    if header is None or header[3] != PALETTE:
        return False
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        return all(kind != b"tRNS" for kind, _ in _chunks(file))


def png_texts(path: Path) -> dict[str, str]:
    """Keyword and text of the chunks before the pixels: ComfyUI's `prompt` and `workflow`, if any."""
    texts: dict[str, str] = {}
    left = MOST_TEXT
    with path.open("rb") as file:
        if file.read(8) != SIGNATURE:
            return {}
        for kind, data in _chunks(file):
            if not data:
                continue
            keyword, _, rest = data.partition(b"\0")
            code, text = "latin-1", rest
            if kind == b"zTXt":
                text = _inflated(rest[1:], left)
            elif kind == b"iTXt":
                code, text = "utf-8", rest[2:].split(b"\0", 2)[-1]
                text = _inflated(text, left) if rest[:1] > b"\0" else text
            left -= len(text)
            if left <= 0:
                break
            texts[keyword.decode("latin-1")] = text.decode(code, "replace")
    return texts


def without_deflated(data: bytes) -> bytes:
    """PNG data without what a decoder would inflate besides the pixels, to any size.

    That is compressed texts, and a color profile, which nothing here reads. Chunks that a profile
    overrides go with it, so that the file's colors stay unspecified. Other data stays as it is.
    """
    if not data.startswith(SIGNATURE):
        return data
    return SIGNATURE + chunks_without_deflated(data[len(SIGNATURE) :])


def chunks_without_deflated(data: bytes) -> bytes:
    """The same of PNG chunks without a signature, as FFmpeg hands those of APNG to the decoder."""
    chunks = list(_chunks_of(memoryview(data)))
    dropped = {b"zTXt", b"iTXt"}
    if any(kind == b"iCCP" for kind, _ in chunks):
        dropped |= {b"iCCP", *OVERRULED}
    return b"".join(content for kind, content in chunks if kind not in dropped)


def _chunks_of(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and bytes of each chunk; a truncated chunk at the end has no type."""
    begin = 0
    while begin + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, begin)
        end = begin + length + 12  # length, type and CRC
        yield kind, data[begin:end]
        begin = end
    yield b"", data[begin:]


def with_texts(data: bytes, texts: Mapping[str, str]) -> bytes:
    """PNG data with texts after its header, where ComfyUI looks for them; other data as it is.

    Latin-1 goes into tEXt, the rest into iTXt, as Pillow writes them.
    """
    if not data.startswith(SIGNATURE):
        return data
    header = 8 + 25  # signature; length, type, 13 bytes and CRC of IHDR
    added = b"".join(_text_chunk(keyword, text) for keyword, text in texts.items())
    return data[:header] + added + data[header:]


def _text_chunk(keyword: str, text: str) -> bytes:
    word = keyword.encode("latin-1", "replace")[:79]  # the specification's longest keyword
    try:
        kind, content = b"tEXt", word + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        kind, content = b"iTXt", word + b"\0\0\0\0\0" + text.encode()
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def _inflated(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:  # a damaged text does not harm the picture
        return b""


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Type and data of each chunk up to the first pixels; no data of those that are no texts."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            return
        if kind in TEXTS and length <= MOST_TEXT:
            yield kind, file.read(length)
            file.seek(4, 1)  # CRC
        else:
            yield kind, b""
            file.seek(length + 4, 1)
