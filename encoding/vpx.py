"""Packets of VP8 and VP9 that show no frame: pictures that only later ones refer to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet


def is_hidden(packet: Packet, codec: str) -> bool:
    """Whether a packet decodes to no frame. Encoders make such "alt-ref" ones in two passes."""
    test = HIDDEN.get(codec)
    return test is not None and test(memoryview(packet))


def _is_hidden_vp8(data: memoryview) -> bool:
    return not data[0] & 0x10  # show_frame, RFC 6386 section 9.1


def _is_hidden_vp9(data: memoryview) -> bool:
    """As its uncompressed header says; a superframe hides its first pictures and shows the last."""
    if data[-1] & 0xE0 == 0xC0:  # superframe_marker
        return False
    header = data[0] << (data[0] & 0x30 == 0x30)  # profile 3 has one more bit
    shows_existing, shows = header & 0x08, header & 0x02
    return not (shows_existing or shows)


HIDDEN = {"vp8": _is_hidden_vp8, "vp9": _is_hidden_vp9}
"""By codec."""
