"""Interpolation for other Python programs: frames or a whole video in one call.

from comfyui_tlbvfi import interpolate_frames, interpolate_video

smooth = list(interpolate_frames(frames, method="flow", times=2))
interpolate_video("clip.mp4", "smooth.mp4", method="flow", fps=60, crf=18)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO, TextIOBase
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex, TypeVar, cast, get_type_hints

from torch import Tensor

from ..encoding.delivery import output_path
from ..encoding.durable import sole_writer
from ..encoding.errors import OutputError, SourceError
from ..encoding.profiles import EncoderSettings
from ..encoding.source import open_source
from ..encoding.stored import is_of_type
from .alpha import Alpha
from .arrays import A, FrameFormat
from .config import JobConfig, SlowmoSound
from .errors import FrameError, SettingsError
from .job import Destination, refuse_the_source, run_job
from .method import Method, announce
from .methods import MethodConfig, create_method
from .one_go import run_in_one_go
from .pipeline import Rules, interpolate
from .plan import make_rules, make_timeline
from .progress import OnEvent, log_notices
from .scenes import marked, sampling_step
from .spans import CutRule, SourceFrame
from .timeline import parse_factor, parse_rate, parse_seconds

F = TypeVar("F")
W = TypeVar("W", int, int | None)

Number = int | float | str | Fraction
"""A rate, factor or time. Decimal NTSC rates (23.976, 29.97, ...) stand for the exact rates."""

MethodLike = str | MethodConfig | Method
"""A method's name, its name and options, or a method from `create_method`, which can be reused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoResult:
    """The result of `interpolate_video`."""

    frames: int
    """Number of frames in the video."""
    was_done: bool = False
    """Whether an earlier identical call had already made the file, and it was verified."""


def interpolate_frames(
    frames: Iterable[A],
    *,
    method: MethodLike = "tlbvfi",
    times: int | None = None,
    fps: Number | None = None,
    slowmo: Number = 1,
    input_fps: Number | None = None,
    cuts: CutRule = "hold",
    retime: bool = False,
    depth: int = 3,
    seed: int = 0,
    alpha: Alpha | None = None,
) -> Generator[A, None, None]:
    """Yield all output frames, each computed on demand.

    `frames`: arrays or tensors [H, W, C], C = 1, 3 or 4 (gray, RGB, RGBA) of uint8, uint16 or float
    (nominally in [0, 1]), all alike; a list, an array [N, H, W, C], or an iterator, which is read a
    few frames ahead and, if it is a generator, closed at the end. Do not write to a frame before
    its pair is done. Source frames are returned as the same objects; mid frames have the same type,
    dtype, device and range.

    `times`: 2**times the frames, (N - 1) * 2**times + 1 in all; the default is 1. Or `fps`, any
    rate, from frames at `input_fps`. Or `slowmo`, how many times longer the result lasts. `cuts`:
    what is shown between two scenes. `retime`: whether repeated frames are replaced by motion.
    `alpha`: whether RGBA frames are straight (the default) or premultiplied. `depth`, `seed`: see
    `JobConfig`.

    Only a few frames are held in memory at a time. Closing the generator stops the work.

    Raises:
        SettingsError: a setting is out of range, or two contradict each other.
        FrameError: fewer than two frames, or unsupported or differing frames; while iterating.
        ModelMissingError, CheckpointError: the method's weights were not found or are unusable.
    """
    if fps is not None and input_fps is None:
        raise SettingsError(f"fps {fps} needs input_fps: pass the rate of the input frames.")
    config = JobConfig(
        times=_plain(times),
        fps=_given(fps, parse_rate),
        slowmo=parse_factor(str(slowmo)),
        cuts=cuts,
        retime=retime,
        depth=_plain(depth),
        seed=_plain(seed),
        alpha=alpha,
    )
    return _output_frames(
        frames, as_method(method), config, _given(input_fps, parse_rate) or Fraction(1)
    )


def interpolate_video(
    source: str | Path | BytesIO | Iterable[Any],
    target: str | Path | BinaryIO,
    *,
    method: MethodLike = "tlbvfi",
    times: int | None = None,
    fps: Number | None = None,
    slowmo: Number = 1,
    slowmo_sound: SlowmoSound = "drop",
    input_fps: Number | None = None,
    hwaccel: str = "auto",
    start: Number | None = None,
    end: Number | None = None,
    cuts: CutRule = "hold",
    retime: bool = False,
    depth: int = 3,
    seed: int = 0,
    alpha: Alpha | None = None,
    codec: str = "auto",
    crf: int | None = None,
    bitrate: str | int | None = None,
    preset: str | None = None,
    pix_fmt: str | None = None,
    sound: str | Path | BytesIO | None = None,
    audio: bool = True,
    metadata: Mapping[str, str] | None = None,
    container: str = "mp4",
    overwrite: bool = False,
    root: str | Path | None = None,
    on_event: OnEvent = log_notices,
) -> VideoResult:
    """Make a video smoother, compressing it once.

    `source`: video file, folder of images, bytes of a video file, or frames as `interpolate_frames`
    takes them. Frames and folders have no frame rate: `input_fps` states it.
    `target`: path, or a seekable binary file object such as BytesIO, which receives a file of type
    `container` and is left open. If the source is on disk, also a folder for images (`frames/` with
    an image `codec`) or a pattern (`frames/f_%06d.png`).

    From disk to disk this is a job as on the command line: it leaves a session in `root` (default:
    `output/` beside the target), and the same call resumes it after a crash. If either end is in
    memory, the job runs in one go and writes nothing but the target.

    `times`, `fps`, `slowmo`, `cuts`, `retime`, `depth`, `seed`: as for `interpolate_frames`.
    `alpha`: as there, for files the default is what their format says, see `JobConfig`.
    `codec`, `crf`, `bitrate`, `preset`, `pix_fmt`: as in ffmpeg. `start`, `end`: seconds or
    hh:mm:ss, half-open. `hwaccel`: what decodes a video: `auto` (a GPU if it returns the same
    frames as software), `none`, `cuda`, or another FFmpeg device. `sound`: file to take the sound
    from, if not the source; `audio=False` drops the sound, and so does slow motion, unless
    `slowmo_sound` is "stretch", which slows it down at its original pitch. `metadata`: tags for the
    file. `on_event` receives progress events and may raise to stop.

    Raises:
        VideoError: the source, encoder or target is unusable.
        InterpolationError: the settings, frames or weights are unusable.
    """
    config = JobConfig(
        times=_plain(times),
        fps=_given(fps, parse_rate),
        slowmo=parse_factor(str(slowmo)),
        slowmo_sound=slowmo_sound,
        cuts=cuts,
        retime=retime,
        depth=_plain(depth),
        seed=_plain(seed),
        alpha=alpha,
        start=_given(start, parse_seconds),
        end=_given(end, parse_seconds),
        encoder=EncoderSettings(
            codec=codec,
            crf=_plain(crf),
            bitrate=str(bitrate) if isinstance(bitrate, int) else bitrate,
            preset=preset,
            pix_fmt=pix_fmt,
        ),
        audio=audio,
    )
    require_arguments(
        interpolate_video,
        container=container,
        metadata=metadata,
        overwrite=overwrite,
        root=root,
        on_event=on_event,
    )
    output = _output(target, codec)
    if output is source or output is sound:
        raise OutputError("the target is the source itself: pass a BytesIO of its own.")
    engine = as_method(method)
    heard = _own_sound(source) if sound is None else _sound(sound)
    rate = _given(input_fps, parse_rate)
    with open_source(_streamable(source), input_rate=rate, hwaccel=hwaccel) as opened:
        if isinstance(source, str | Path) and isinstance(output, Path):
            refuse_the_source(Path(source), output)
            destination = Destination(
                output=output,
                root=None if root is None else Path(root),
                overwrite=overwrite,
                sound=heard,
                metadata=metadata,
            )
            job = run_job(opened, engine, config, destination, on_event=on_event)
            return VideoResult(frames=job.frames, was_done=job.was_done)
        is_path = isinstance(output, Path)
        with _new_file(output, overwrite) if is_path else nullcontext():
            frames = run_in_one_go(
                opened,
                engine,
                config,
                output,
                suffix=output.suffix.lower() if is_path else f".{container.lower().lstrip('.')}",
                sound=heard,
                metadata=metadata,
                on_event=on_event,
            )
        return VideoResult(frames=frames)


def as_method(method: MethodLike) -> Method:
    """The requested method, with its weights loaded.

    Raises:
        SettingsError: there is no method of this name.
        ModelMissingError, CheckpointError: its weights were not found or are unusable.
    """
    if hasattr(method, "between"):
        return cast("Method", method)
    return create_method(cast("str | MethodConfig", method))  # which refuses anything else


def require_arguments(function: Callable[..., object], **arguments: object) -> None:
    """Require that arguments have the types that the function announces.

    Raises:
        SettingsError: one does not.
    """
    hints = get_type_hints(function)
    for name, value in arguments.items():
        if not is_of_type(value, hints[name]):
            kind = function.__annotations__[name]
            raise SettingsError(f"{name} is {value!r:.80}, not {kind}: pass a value of that type.")


def _plain(number: W) -> W | int:
    """An integer of any kind, such as numpy's, as Python's own; anything else as it is."""
    return operator.index(number) if isinstance(number, SupportsIndex) else number


def _given(value: Number | None, parse: Callable[[str], Fraction]) -> Fraction | None:
    return None if value is None else parse(str(value))


def _output_frames(
    frames: Iterable[A], method: Method, config: JobConfig, rate: Fraction
) -> Generator[A, None, None]:
    with closing(_at_least_two(frames)) as given:
        first = next(given)
        alike = FrameFormat.of(first)
        announce(method, None)
        rules = make_rules(config, alpha_is_straight=True)
        outputs = interpolate(
            _source_frames(chain([first], given), alike, rules, rate / config.slowmo),
            method,
            make_timeline(config, rate),
            rules,
        )
        for output in outputs:
            if output.source is not None:
                yield output.source.picture
            else:
                assert output.image is not None  # an output frame is one or the other
                yield alike.frame(output.image)


def _source_frames(
    frames: Iterable[A], alike: FrameFormat[A], rules: Rules, rate: Fraction
) -> Iterator[SourceFrame[A]]:
    """The frames in the form the pipeline takes, at their rate on the output's clock."""
    step = sampling_step(*alike.shape[:2])

    def numbered() -> Iterator[tuple[int, A]]:
        for index, frame in enumerate(frames):
            alike.require(frame, index)
            yield index, frame

    def thumbnail(item: tuple[int, A]) -> Tensor:
        return alike.image(item[1][::step, ::step])

    looked_at = marked(numbered(), thumbnail, look=rules.look)
    for (index, frame), begins_scene, repeats in looked_at:
        yield SourceFrame(
            index=index,
            time=index / rate,
            image=alike.image(frame),
            picture=frame,
            begins_scene=begins_scene,
            repeats=repeats,
        )


def _at_least_two(frames: Iterable[F]) -> Generator[F, None, None]:
    """The frames; closing this generator closes the one they come from, if any.

    Raises:
        FrameError: after the last frame, if there were fewer than two.
    """
    count = 0
    iterator = iter(frames)
    try:
        for frame in iterator:
            count += 1
            yield frame
    finally:
        if isinstance(iterator, Generator):
            iterator.close()
    if count < 2:
        raise FrameError(f"interpolation needs at least 2 frames, but got {count}: pass more.")


def _streamable(
    source: str | Path | BytesIO | Iterable[Any],
) -> str | Path | BytesIO | Iterable[Any]:
    """The source in a form that can be opened."""
    if isinstance(source, str | Path | BytesIO) or hasattr(source, "__len__"):
        return source
    if hasattr(source, "read"):  # the picture and the sound are read at the same time
        raise SettingsError(
            f"a {type(source).__name__} cannot be read in two places at once: pass the file's "
            "path, or its bytes in a BytesIO."
        )
    return _at_least_two(source)


def _own_sound(source: str | Path | BytesIO | Iterable[Any]) -> Path | BytesIO | None:
    """The source, if it can hold sound."""
    if isinstance(source, str | Path):
        return Path(source) if Path(source).is_file() else None
    return source if isinstance(source, BytesIO) else None


def _sound(file: object) -> Path | BytesIO:
    """The file that was named for the sound; nothing takes the place of one that is missing."""
    if isinstance(file, BytesIO):
        return file
    if not isinstance(file, str | Path):
        raise SettingsError(
            f"sound is of type {type(file).__name__}: pass a file's path, or its bytes in a BytesIO."
        )
    if not Path(file).is_file():
        raise SourceError(f"sound {str(file)!r} is not a file: check the path.")
    return Path(file)


@contextmanager
def _new_file(target: Path, overwrite: bool) -> Iterator[None]:
    with sole_writer(target):
        if target.exists() and not overwrite:
            raise OutputError(
                f"{target} exists: choose another name, or overwrite=True to replace it."
            )
        yield


def _output(target: str | Path | BinaryIO, codec: str) -> Path | BinaryIO:
    """The target, if something can be written there."""
    if isinstance(target, str | Path):
        return output_path(str(target), codec)
    if not hasattr(target, "write") or isinstance(target, TextIOBase):
        raise SettingsError(
            f"target is of type {type(target).__name__}: pass a path or a binary file object."
        )
    can = (getattr(target, name, lambda: True) for name in ("writable", "seekable"))
    if getattr(target, "closed", False) or not all(each() for each in can):
        raise OutputError(
            "the target is closed, read-only or not seekable: open it with mode 'wb'."
        )
    return target
