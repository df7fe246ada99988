"""Writes a session's output as numbered images: `frames/f_%06d.png`, from number 1 on.

    write_images(session, Path("frames/f_%06d.png"), image_format(".png", decoded_picture(session)))

Each image is either complete or absent. A note in the session claims the pattern before the first
image is written, so that a later run can tell whether images of that pattern are ours: it continues
an interrupted run with the missing ones, and never touches images made by anything else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

from .callbacks import OnProgress, no_progress
from .concat import JoinResult
from .durable import atomic_file, disk_errors, make_folder
from .errors import OutputError, SourceError, VerificationError
from .image_encoder import ImageFormat, encoded_image
from .images import DECODERS, ImageSource, done_ahead, read_image
from .manifest import Json
from .mezzanine import decoded_frames
from .packets import CHUNK_PACKETS
from .png import with_texts
from .session import IF_OUTPUT_FULL, Session
from .timetable import timetable
from .verify import Check, VerifyReport, open_whole, require_whole
from .writer import StreamSpec

DEFAULT_STEM = "frame_%06d"

Encode = Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePattern:
    """The names of numbered images in a folder."""

    folder: Path
    before: str
    digits: int
    """Numbers are zero-padded to this many digits."""
    after: str
    """The rest of the name, suffix included."""

    def path(self, number: int) -> Path:
        """File of the image with this number."""
        return self.folder / f"{self.before}{number:0{self.digits}d}{self.after}"

    def found(self) -> dict[int, Path]:
        """Existing images by number, with any number of leading zeros.

        Some disks tell apart neither case nor the ways to write an accent: an image under a name that
        they take for ours would be replaced, so it counts.
        """
        name = re.compile(
            re.escape(_folded(self.before)) + r"(\d+)" + re.escape(_folded(self.after))
        )
        there = sorted(self.folder.iterdir()) if self.folder.is_dir() else ()
        matches = ((name.fullmatch(_folded(path.name)), path) for path in there)
        named = ((int(match[1]), path) for match, path in matches if match)
        images = ((number, self._as_ours(number, path)) for number, path in named)
        return {number: path for number, path in images if path is not None}

    def _as_ours(self, number: int, path: Path) -> Path | None:
        """The image at `path`, whose name is like ours; None if it is another file on this disk."""
        if path.name.startswith(self.before) and path.name.endswith(self.after):
            return path
        ours = self.path(number)
        return ours if ours.exists() and ours.samefile(path) else None


def _folded(name: str) -> str:
    """The same for names that some disk takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def is_image(suffix: str) -> bool:
    """Whether files with this suffix are images."""
    return suffix.lower() in DECODERS


def image_pattern(output: Path) -> ImagePattern:
    """The pattern in a name such as `frames/f_%06d.png` (ffmpeg's notation).

    Raises:
        OutputError: it contains no number field, or more than one.
    """
    match = re.fullmatch(r"([^%]*)%(?:0(\d{1,2}))?d([^%]*)", output.name)
    if not match or not is_image(output.suffix):
        raise OutputError(
            f"{output.name} names one image and the output has many: write "
            f"{output.stem.split('%')[0]}_%06d{output.suffix} to number them."
        )
    before, digits, after = match.groups()
    return ImagePattern(
        folder=output.parent, before=before, digits=int(digits or 1), after=after or ""
    )


def write_images(
    session: Session,
    output: Path,
    form: ImageFormat,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = no_progress,
) -> JoinResult:
    """Write all frames of a session as images named by the pattern `output`, and check them.

    If the chunks hold images of exactly this format they are copied, otherwise encoded. `metadata`
    goes into PNG images as texts, as ComfyUI writes its `workflow` and `prompt`. `overwrite`
    removes images of the pattern first, unless an earlier run has begun to write the same ones.

    Raises:
        SessionError: chunks are missing.
        VerificationError: a chunk is damaged, or images are missing at the end.
        OutputError: other images of that pattern exist, or the disk is full or not writable.
    """
    pattern = image_pattern(output)
    require_whole(session)
    records = session.in_order()
    times = timetable(session.manifest, records)
    total = len(times.pts)
    with disk_errors(pattern.folder, if_full=IF_OUTPUT_FULL):
        make_folder(pattern.folder)
        done = _claim(session, pattern, form, total, overwrite=overwrite)
        _write_missing(session, pattern, form, done, total, metadata or {}, on_progress)
    size = session.manifest.stream.width, session.manifest.stream.height
    _require_readable(pattern, total, size)
    return JoinResult(
        output=output,
        frames=total,
        duration=times.duration,
        bytes=total_bytes(pattern),
        notes=_notes(form, session.manifest.stream, metadata or {}),
    )


def refuse_other_images(session: Session | None, pattern: ImagePattern, form: ImageFormat) -> None:
    """Refuse to write among images of the pattern that are not this session's own.

    Raises:
        OutputError: there are such images.
    """
    found = pattern.found()
    if found and (session is None or session.images() != _claim_of(pattern, form)):
        raise OutputError(
            f"{next(iter(found.values()))} exists and was not made by this job: choose another "
            "folder or name or, on the command line, --overwrite to replace all images of this pattern."
        )


def verify_images(folder: Path, *, deep: bool = False) -> VerifyReport:
    """Check that a folder holds one sequence of images without gaps; `deep` decodes them all."""
    checks = []
    try:
        with ImageSource(folder, rate=Fraction(1)) as source:
            what = f"{source.info.frame_count} images without a gap"
            checks.append(Check(name="sequence", ok=True, what=what))
            if deep:
                count = sum(1 for _ in source.frames())
                checks.append(Check(name="pictures", ok=True, what=f"{count} alike, all decode"))
    except SourceError as error:
        checks.append(Check(name="images", ok=False, what=str(error)))
    return VerifyReport(subject=str(folder), checks=tuple(checks))


def problem_with_images(pattern: ImagePattern, frames: int) -> str:
    """Why the images are not an output of this many frames, judged by name; empty if they are."""
    found = pattern.found()
    missing = next((n for n in range(1, frames + 1) if found.get(n) != pattern.path(n)), None)
    if missing is not None:
        return f"{pattern.path(missing).name} is missing"
    other = next((path.name for number, path in found.items() if not 0 < number <= frames), None)
    return f"{other} is not one of its frames" if other else ""


def total_bytes(pattern: ImagePattern) -> int:
    """Size of all images of the pattern."""
    return sum(path.stat().st_size for path in pattern.found().values())


def _claim(
    session: Session, pattern: ImagePattern, form: ImageFormat, total: int, *, overwrite: bool
) -> set[int]:
    """Claim the pattern; the numbers of images that our interrupted run has already written."""
    claim, found = _claim_of(pattern, form), pattern.found()
    if session.images() == claim and not (overwrite and len(found) >= total):
        return {number for number, path in found.items() if path == pattern.path(number)}
    if not overwrite:
        refuse_other_images(session, pattern, form)
    for path in found.values():
        path.unlink()
    session.note_images(claim)
    return set()


def _claim_of(pattern: ImagePattern, form: ImageFormat) -> Json:
    return {"output": str(pattern.path(0).absolute()), "format": asdict(form)}


def _write_missing(
    session: Session,
    pattern: ImagePattern,
    form: ImageFormat,
    done: set[int],
    total: int,
    texts: Mapping[str, str],
    on_progress: OnProgress,
) -> None:
    missing = [number for number in range(1, total + 1) if number not in done]
    if not missing:
        return
    with closing(_images(session, form, missing[0] - 1)) as images:
        writes = (
            partial(_write, pattern.path(number), encode, texts)
            for number, encode in enumerate(images, missing[0])
            if number not in done
        )
        with closing(done_ahead(writes)) as written:
            for number, _ in zip(missing, written, strict=False):
                on_progress(number, total)


def _write(path: Path, encode: Encode, texts: Mapping[str, str]) -> None:
    data = encode()
    with disk_errors(path, if_full=IF_OUTPUT_FULL), atomic_file(path) as temporary:
        temporary.write_bytes(with_texts(data, texts))


def _images(session: Session, form: ImageFormat, start: int) -> Generator[Encode, None, None]:
    """Functions that encode the images from frame `start` on; each may run in any thread."""
    encoder, stream = session.manifest.encoder, session.manifest.stream
    kind = form.options.get("format")
    if form.encoder == encoder.name == "exr" and kind == encoder.options.get("format"):
        with closing(_packets(session, start)) as packets:
            for data in packets:
                yield partial(bytes, data)
        return
    with closing(decoded_frames(session, start)) as pictures:
        for picture in pictures:
            yield partial(encoded_image, picture, form, stream.color, stream.sample_aspect_ratio)


def _packets(session: Session, start: int) -> Generator[bytes, None, None]:
    """The packets of all chunks from frame `start` on."""
    first = 0
    for record in session.in_order():
        if first + record.frames > start:
            with open_whole(session, record, CHUNK_PACKETS) as chunk:
                full = (packet for packet in chunk.demux(video=0) if packet.size)
                for packet in islice(full, max(0, start - first), None):
                    yield bytes(packet)
        first += record.frames


def _require_readable(pattern: ImagePattern, frames: int, size: tuple[int, int]) -> None:
    """Require that all names exist and that the first and the last image can be decoded."""
    problem = problem_with_images(pattern, frames)
    for number in (1, frames):
        picture = None if problem else read_image(pattern.path(number))
        if picture is not None and (picture.width, picture.height) != size:
            problem = f"{pattern.path(number).name} is {picture.width}x{picture.height}"
    if problem:
        raise VerificationError(
            f"The images in {pattern.folder} are not as planned ({problem}): run it again."
        )


def _notes(form: ImageFormat, stream: StreamSpec, metadata: Mapping[str, str]) -> tuple[str, ...]:
    lost = {
        f"rotation by {stream.rotation} degrees": stream.rotation != 0,
        "mirroring": stream.is_mirrored,
        f"sample aspect ratio {stream.sample_aspect_ratio}": (
            stream.sample_aspect_ratio not in (None, 1) and not form.keeps_aspect
        ),
    }
    notes = [f"{form.suffix} images do not keep the {what}." for what in lost if lost[what]]
    texts = sorted({"prompt", "workflow"} & metadata.keys())
    if texts and form.suffix != ".png":
        what = " and ".join(texts)
        notes.append(f"{form.suffix} images do not keep the {what}: .png images do.")
    return tuple(notes)
