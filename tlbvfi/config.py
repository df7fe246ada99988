"""The settings of a job as frozen dataclasses: one place for types, defaults and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from ..encoding.profiles import EncoderSettings
from ..encoding.stored import require_types
from .alpha import Alpha
from .errors import SettingsError
from .spans import CutRule, require_cut_rule
from .timeline import LOWEST_RATE, MAX_TIMES

SlowmoSound = Literal["drop", "stretch"]
"""The sound in slow motion: left out, or stretched to the new length at its own pitch."""

DEFAULT_CHUNK_SECONDS = Fraction(2)
"""Short enough that a crash costs little, long enough that its own GOPs add under 1 % of size."""


def require_settings(settings: Any) -> None:  # noqa: ANN401 - any dataclass
    """Require that settings have the types of their annotations, which Python does not check.

    Raises:
        SettingsError: one does not.
    """
    try:
        require_types(settings, most=math.inf)  # ranges are checked field by field
    except TypeError as error:
        raise SettingsError(f"{error}: pass a value of that type.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLength:
    """When a chunk ends: after seconds of source, after output frames, or at a size in bytes.

    At most one of the three may be given; seconds is the default. Chunks end between two pairs.
    Seconds and frames are counted at the source's average rate, so that a chunk is a fixed number
    of pairs and a resumed job cuts where the first run did. Bytes adapts to the picture.
    """

    seconds: Fraction | None = None
    frames: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        require_settings(self)
        given = [v for v in (self.seconds, self.frames, self.bytes) if v is not None]
        if len(given) > 1:
            raise SettingsError(
                "a chunk's length is given in seconds, frames or bytes: choose only one of them."
            )
        if given and given[0] <= 0:
            raise SettingsError(f"a chunk's length must be above 0, got {given[0]}.")

    def pairs(self, source_rate: Fraction, frames_per_pair: Fraction) -> int | None:
        """Pairs in a chunk, at least 1; None if the size decides."""
        if self.bytes is not None:
            return None
        if self.frames is not None:
            return max(1, int(self.frames / frames_per_pair))
        return max(1, round((self.seconds or DEFAULT_CHUNK_SECONDS) * source_rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """Everything that decides the output frames and files of a job, except source and method."""

    times: int | None = None
    """Bisection depth: (N - 1) * 2**times + 1 frames. 1 if neither fps nor slowmo is given."""
    fps: Fraction | None = None
    """Exact output rate, whatever the source's; with slowmo it defaults to the source's."""
    slowmo: Fraction = Fraction(1)
    """How many times longer the output lasts."""
    slowmo_sound: SlowmoSound = "drop"
    depth: int = 3
    """At a target rate, methods that only bisect show the nearest of 2**depth - 1 mid frames."""
    cuts: CutRule = "hold"
    """What is shown between the last frame of a scene and the first of the next."""
    retime: bool = False
    """Whether frames that repeat the one before (animation on twos) are replaced by motion."""
    seed: int = 0
    """Seed of the methods that draw noise."""
    alpha: Alpha | None = None
    """How the colors of RGBA frames relate to alpha; None: as the source's format says, and as if
    premultiplied, which leaves them as they are, where it says nothing."""
    start: Fraction | None = None
    """Seconds after the first frame where the window [start, end) opens."""
    end: Fraction | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """For the output, and for the chunks unless they are a mezzanine or the output is images."""
    mezzanine: EncoderSettings | None = None
    """For the chunks, if they are encoded again, into the output, at the end."""
    software_twin: bool = False
    """Whether a hardware encoder that cannot run here is replaced by its software twin."""
    chunk: ChunkLength = field(default_factory=ChunkLength)
    audio: bool = True

    @property
    def has_sound(self) -> bool:
        """Whether the sound of the source, if any, goes into the output."""
        return self.audio and (self.slowmo == 1 or self.slowmo_sound == "stretch")

    def __post_init__(self) -> None:
        require_settings(self)
        if self.times is not None and (self.fps is not None or self.slowmo != 1):
            raise SettingsError(
                "times multiplies the frames at the source's own rate: leave it out with fps or "
                "slowmo."
            )
        if self.times is not None and not 1 <= self.times <= MAX_TIMES:
            hint = (
                ": that would only encode the video again, for which a transcoder is the better tool"
                if self.times == 0
                else f": 1 doubles the frames, {MAX_TIMES} makes {2**MAX_TIMES} times as many"
            )
            raise SettingsError(f"times must be between 1 and {MAX_TIMES}, got {self.times}{hint}.")
        if not 1 <= self.depth <= MAX_TIMES:
            raise SettingsError(f"depth must be between 1 and {MAX_TIMES}, got {self.depth}.")
        if self.fps is not None and not LOWEST_RATE <= self.fps <= 1000:
            raise SettingsError(f"fps must be between {LOWEST_RATE} and 1000, got {self.fps}.")
        if not 1 <= self.slowmo <= 256:
            raise SettingsError(f"slowmo must be between 1 and 256, got {self.slowmo}.")
        if self.slowmo_sound not in get_args(SlowmoSound):
            raise SettingsError(f"slowmo_sound must be drop or stretch, got {self.slowmo_sound!r}.")
        require_cut_rule(self.cuts)
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"seed must be between 0 and 2**63 - 1, got {self.seed}.")
        if self.alpha not in (None, *get_args(Alpha)):
            raise SettingsError(f"alpha must be straight or premultiplied, got {self.alpha!r}.")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise SettingsError(f"start ({self.start} s) must be before end ({self.end} s).")
