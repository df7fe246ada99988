"""Joins the chunks of a session into one file by packet copy, with exact times.

    result = join(session, Path("smooth.mp4"), source=Path("clip.mp4"))

No picture is compressed again. Every packet gets new times from the timetable; the chunks' own
times only tell which frame a packet holds. Sound, subtitles, chapters and metadata come from the
source, whose clock the output keeps.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from .callbacks import OnProgress, no_progress
from .carried import open_carried
from .container import VideoInput, file_url
from .durable import atomic_file, disk_errors, make_folder, refuse_existing
from .errors import OutputError, VerificationError
from .frame import ColorTags, is_mirrored
from .manifest import Manifest
from .packets import CHUNK, CHUNK_PACKETS, open_made
from .profiles import find_profile
from .progress import ChunkRecord
from .session import IF_OUTPUT_FULL, Session
from .timetable import Timetable, require_storable, timetable
from .track import Track
from .tracks import is_left_out
from .verify import Expected, open_whole, require_whole, verify_file
from .window import Window, output_window
from .writer import ISO_MEDIA, MUXERS

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

PRORES_TAGS = ("apch", "ap4h")
REDIVIDED = ("pcm", "ac3", "eac3")
"""Audio codecs whose packets muxers split differently; the mp4 muxer drops an (E-)AC-3 frame that
is cut off at the beginning, and merges short ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinResult:
    """A verified final file."""

    output: Path
    frames: int
    duration: Fraction
    """Seconds from the first frame's beginning to the last one's end."""
    bytes: int
    shift: Fraction = Fraction(0)
    """Seconds on the source's clock at which the output's clock begins: see `expected_output`."""
    notes: tuple[str, ...]
    """One sentence for each part of the source that could not be carried over unchanged."""


OnMade = Callable[[JoinResult], None]
"""Called with the facts of a verified file just before it gets its name."""


def join(
    session: Session,
    output: Path,
    *,
    source: VideoInput | None = None,
    window: Window | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = no_progress,
    on_verify: OnProgress = no_progress,
    on_made: OnMade | None = None,
) -> JoinResult:
    """Join all chunks into `output`, which appears only once it is complete and verified.

    `source`: file whose sound, subtitles, chapters and metadata are carried over.
    `window`: the part of the source that was used; the output's clock begins with it. If it is
    stretched, sound is slowed at its original pitch, and encoded.
    `metadata`: additional entries, such as ComfyUI's `workflow` and `prompt`.
    `on_progress` and `on_verify` are called with frames done and total frames, and may raise to stop.
    `on_made` notes the file before it appears; after a crash, `output` is then known or absent.
    The session's chunks are left as they are: see `Session.drop_chunks`.

    Raises:
        SessionError: chunks are missing.
        VerificationError: a chunk or the joined file is damaged.
        OutputError: `output` exists, or cannot be written, or cannot hold a stream.
    """
    _refuse_unsuitable(session, output, overwrite=overwrite)
    require_whole(session)
    window = output_window(window, session.manifest.start, output.suffix)
    records = session.in_order()
    shift = window.start if window else Fraction(0)
    times = timetable(session.manifest, records, shift=shift)
    require_storable(output.suffix, times.least_distance, is_vfr=session.manifest.is_vfr)
    plan = _Plan(session=session, records=records, times=times, source=source, window=window)
    with disk_errors(output, if_full=IF_OUTPUT_FULL):
        make_folder(output.parent)
        with atomic_file(output) as temporary:
            other, notes = _write_or_refuse(plan, temporary, dict(metadata or {}), on_progress)
            expected = Expected(times=times, other=other)
            report = verify_file(temporary, expected, on_progress=on_verify)
            report.require("check the disk, or choose another container")
            result = JoinResult(
                output=output,
                frames=len(times.pts),
                duration=times.duration,
                bytes=temporary.stat().st_size,
                shift=shift,
                notes=tuple(notes),
            )
            refuse_existing(output, overwrite=overwrite)  # once more: joining takes a while
            if on_made is not None:
                on_made(result)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    session: Session
    records: Sequence[ChunkRecord]
    times: Timetable
    source: VideoInput | None
    window: Window | None


def _refuse_unsuitable(session: Session, output: Path, *, overwrite: bool) -> None:
    refuse_existing(output, overwrite=overwrite)
    fitting = find_profile(session.manifest.encoder.profile).containers
    if output.suffix.lower() not in fitting:
        raise OutputError(
            f"{output.name}: chunks of {session.manifest.encoder.profile} do not fit into "
            f"{output.suffix or 'a file without suffix'}: choose {' or '.join(fitting)}, or name "
            "a codec to have them encoded once more."
        )


def _write_or_refuse(
    plan: _Plan, path: Path, metadata: dict[str, str], on_progress: OnProgress
) -> tuple[tuple[int | None, ...], list[str]]:
    try:
        return _write(plan, path, metadata, on_progress)
    except FFmpegError as error:
        if isinstance(error, OSError):  # a problem with the disk
            raise
        raise OutputError(
            f"The chunks cannot be joined into a {path.suffix} file ({error}): "
            "choose another container."
        ) from error


def _write(
    plan: _Plan, path: Path, metadata: dict[str, str], on_progress: OnProgress
) -> tuple[tuple[int | None, ...], list[str]]:
    """Write the joined file; packet counts of the streams other than video, and notes."""
    suffix = path.suffix.lower()
    with open_carried(plan.source, window=plan.window, metadata=metadata) as carried:
        options = carried.options(suffix, plan.times.time_base)
        with av.open(file_url(path), "w", MUXERS[suffix], container_options=options) as out:
            video = _add_video(out, plan, suffix)
            manifest = plan.session.manifest
            rate = None if manifest.is_vfr else manifest.stream.rate
            tracks, notes = carried.add_to(out, suffix, rate)
            streams = [_video_packets(plan, video, on_progress), carried.packets(tracks, notes)]
            counts = Counter[int]()
            for _, packet in heapq.merge(*streams, key=itemgetter(0)):
                # FLAC ends with a packet that is only a header.
                counts[packet.stream_index] += packet.size > 0
                out.mux_one(packet)
            kept = [track for track in tracks if not is_left_out(track, counts[track.target.index])]
            other = tuple(_countable(track, counts) for track in kept)
        with open_made(path) as made:
            notes += carried.unkept(made, suffix, [track.source for track in kept])
            notes += _undescribed(made, suffix, manifest)
    return other, notes


def _countable(track: Track, counts: Counter[int]) -> int | None:
    """Packets expected in the finished file; None if the muxer decides."""
    codec = track.target.codec_context.name if track.target.type == "audio" else "pcm"
    return None if codec.startswith(REDIVIDED) else counts[track.target.index]


def _add_video(out: OutputContainer, plan: _Plan, suffix: str) -> VideoStream:
    path = plan.session.chunk_path(plan.records[0].index)
    with open_made(path, CHUNK) as chunk:
        template = chunk.streams.video[0]
        stream = out.add_stream_from_template(template, opaque=True)
        tag = template.codec_context.codec_tag
        if _keeps_tag(tag, path.suffix, suffix):
            stream.codec_context.codec_tag = tag
    planned = plan.session.manifest.stream
    if not plan.session.manifest.is_vfr:
        # A timecode needs it, and of a copied stream only H.264 and HEVC tell it.
        stream.codec_context.framerate = planned.rate
    if planned.sample_aspect_ratio is not None:
        stream.codec_context.sample_aspect_ratio = planned.sample_aspect_ratio
    stream.time_base = plan.times.time_base
    return stream


def _keeps_tag(tag: str, one: str, other: str) -> bool:
    """Whether a codec tag means the same in both containers.

    Without its own tag, ProRes 4444 is labeled as 422 HQ and decodes to other pixels.
    """
    if not tag.strip("\0 "):
        return False
    if other == ".mkv":  # stores ProRes's tag and refuses a file with any other
        return tag in PRORES_TAGS
    return any(one in family and other in family for family in (ISO_MEDIA, (".nut", ".avi")))


def _video_packets(
    plan: _Plan, stream: VideoStream, on_progress: OnProgress
) -> Iterator[tuple[float, Packet]]:
    """(decode time in seconds, packet) of all chunks, in decode order."""
    times, unit = plan.times, float(plan.times.time_base)
    dts = times.dts(plan.session.manifest.encoder.reorder)
    columns = (
        *(times.pts, times.durations(), dts),
        np.diff(dts, append=dts[-1:]),
        times.end - times.pts[0] + dts[0] - dts,
    )
    head, done = None, 0
    for record in plan.records:
        shown, lasting, decoded, gaps, left = (
            column[done : done + record.frames].tolist() for column in columns
        )
        with open_whole(plan.session, record, CHUNK_PACKETS) as chunk:
            head = _require_same_head(chunk, head, record)
            for position, (place, packet) in enumerate(_placed(chunk, plan.session, record)):
                packet.stream = stream
                packet.time_base = times.time_base
                packet.pts, packet.dts = shown[place], decoded[position]
                # mp4 tracks are as long as the packet that ends last in decode time.
                is_last = done + position == len(times.pts) - 1
                packet.duration = left[position] if is_last else min(lasting[place], left[position])
                if done + position > 0 and gaps[position] >= times.end - shown[place]:
                    # FFmpeg's mp4 reader stops at the second keyframe that has less time left
                    # than there is until the next packet; a seek point matters less.
                    packet.is_keyframe = False
                yield decoded[position] * unit, packet
        done += record.frames
        on_progress(done, len(times.pts))


def _require_same_head(
    chunk: InputContainer, first: tuple[object, ...] | None, record: ChunkRecord
) -> tuple[object, ...]:
    """Decoders read the header once, so it must hold for every chunk; muxers do not check."""
    context = chunk.streams.video[0].codec_context
    head = (context.name, context.width, context.height, context.extradata)
    if first is not None and head != first:
        raise VerificationError(
            f"Chunk {record.index} was encoded with another encoder or other settings than the "
            "first one (their headers differ): remove it and resume, or begin a new session."
        )
    return head


def _placed(
    chunk: InputContainer, session: Session, record: ChunkRecord
) -> Iterator[tuple[int, Packet]]:
    """(number of the frame within the chunk, packet), in decode order.

    Raises:
        VerificationError: the packets are not the recorded frames.
    """
    is_intra = session.manifest.encoder.is_intra
    place_at = _places(session, record)
    found, first = 0, None
    for packet in chunk.demux(video=0):
        if not packet.size:
            continue
        if is_intra:  # in order; Matroska's milliseconds are too coarse
            place = found if found < record.frames else None
        else:
            first = packet.pts or 0 if first is None else first
            place = place_at.pop(_tick(packet, first, session), None)
        if place is None or (found == 0 and not packet.is_keyframe):
            raise VerificationError(
                f"Chunk {record.index} holds other frames than were recorded: "
                "remove its file and resume."
            )
        found += 1
        yield place, packet
    if found != record.frames:
        raise VerificationError(
            f"Chunk {record.index} holds {found} frames instead of {record.frames}: "
            "remove its file and resume."
        )


def _places(session: Session, record: ChunkRecord) -> dict[int, int]:
    """Tick within the chunk -> number of the frame within the chunk."""
    if record.pts is not None:
        return {tick - record.pts[0]: place for place, tick in enumerate(record.pts)}
    step = session.manifest.stream.step
    return {place * step: place for place in range(record.frames)}


def _tick(packet: Packet, first: int, session: Session) -> int:
    """Session ticks from the first packet to this one; -1, where no frame is, if between ticks."""
    base, own = session.manifest.stream.time_base, packet.time_base
    if packet.pts is None:
        return -1
    tick, rest = divmod(
        (packet.pts - first) * own.numerator * base.denominator, own.denominator * base.numerator
    )
    return -1 if rest else tick


def _undescribed(made: InputContainer, suffix: str, manifest: Manifest) -> list[str]:
    """Notes on which parts of the video's description the container did not keep."""
    planned, stream = manifest.stream, made.streams.video[0]
    aspect = stream.sample_aspect_ratio or 1
    is_turned = planned.rotation != 0 or planned.is_mirrored
    but_for = ", except in each frame" if manifest.encoder.name == "ffv1" else ""
    shown = next(made.decode(video=0)) if is_turned else None
    lost = {
        "color tags": not _tells(ColorTags.of(stream.codec_context), planned.color),
        f"sample aspect ratio {planned.sample_aspect_ratio}{but_for}": (
            planned.sample_aspect_ratio not in (None, aspect)
        ),
        f"rotation by {planned.rotation} degrees": (
            shown is not None and planned.rotation != 0 and shown.rotation == 0
        ),
        "mirroring": (shown is not None and planned.is_mirrored and not is_mirrored(shown)),
    }
    kind = f"{suffix} with {manifest.encoder.profile}"
    return [f"{kind} does not keep the {what}." for what, is_lost in lost.items() if is_lost]


def _tells(found: ColorTags, planned: ColorTags) -> bool:
    """Whether every tag that was planned was found."""
    unspecified = ColorTags()
    return all(
        wanted in (getattr(unspecified, key), getattr(found, key))
        for key, wanted in asdict(planned).items()
    )
