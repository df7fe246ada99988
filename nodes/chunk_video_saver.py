"""A batch of frames -> one chunk of a session."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..encoding.probe import probe
from ..tlbvfi.errors import SettingsError
from . import choices
from .host import NodeProgress, folders
from .manual_session import chunk_settings, new_session_id, save_chunk
from .output_settings import exact_rate, frames_per_pair
from .paths import folder_in_output, readable_file
from .validation import check_rate, check_session_id, first_problem
from .values import checked

LAST_CHUNK = 999_999


class ChunkVideoSaver(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_ChunkVideoSaver",
            display_name="TLBVFI Chunk Video Saver",
            category=f"{choices.CATEGORY}/chunk",
            description="Saves frames as one chunk of a session, for TLBVFI Video Concatenator to "
            "join. Chunks of two frames are about three times as large as long ones at the same "
            "quality: prefer a lossless codec here and one final encode, or TLBVFI Chunk Processor.",
            is_output_node=True,
            inputs=[
                io.Image.Input("frames", tooltip="Frames of this chunk, in order."),
                io.Int.Input(
                    "chunk_id",
                    default=0,
                    min=0,
                    max=LAST_CHUNK,
                    step=1,
                    display_mode=io.NumberDisplay.number,
                    tooltip="Number of the chunk, from 0: its position in the joined video. May be "
                    "linked, and chunks may be saved in any order.",
                ),
                io.MultiType.Input(
                    io.Float.Input(
                        "fps",
                        default=30,
                        min=0,
                        max=1000,
                        step=0.001,
                        tooltip="Frame rate of the result; 23.976 means 24000/1001 and so on. 0: the "
                        "rate of source_video_path times 2^times_to_interpolate.",
                    ),
                    [io.Int],
                ),
                io.String.Input(
                    "session_id",
                    default="",
                    optional=True,
                    tooltip="Name of the session, the same for all its chunks. Empty: a new session at "
                    "every run.",
                ),
                io.String.Input(
                    "output_dir",
                    default="",
                    optional=True,
                    tooltip="Folder below ComfyUI's output folder that holds tlbvfi_chunks.",
                ),
                io.String.Input(
                    "source_video_path",
                    default="",
                    optional=True,
                    tooltip="The video the frames come from: its sound goes into the joined video, and "
                    "if codec is auto, its codec and color are used.",
                ),
                choices.codec(optional=True),
                io.Int.Input(
                    "quality",
                    default=18,
                    min=0,
                    max=51,
                    step=1,
                    optional=True,
                    tooltip="Constant quality (crf): lower is better and larger. 18 looks lossless.",
                ),
                choices.times(default=1, minimum=1, optional=True),
            ],
            outputs=[
                io.String.Output("session", display_name="session_id"),
                io.String.Output("chunk_path", display_name="chunk_path"),
                io.Int.Output("num_frames", display_name="num_frames"),
                io.String.Output("file_size_mb", display_name="file_size_mb"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, session_id: str | None = None, fps: object = None) -> bool | str:
        # ComfyUI converts no value of an input with two types, and fails to compare it with limits
        return first_problem(check_session_id(session_id), check_rate(fps))

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> float:
        """Never the same: a join may have removed its chunk, and the source video may have changed."""
        return float("nan")

    @classmethod
    @checked
    def execute(
        cls,
        frames: Tensor,
        chunk_id: int,
        fps: float,
        session_id: str = "",
        output_dir: str = "",
        source_video_path: str = "",
        codec: str = "auto",
        quality: int = 18,
        times_to_interpolate: int = 1,
    ) -> io.NodeOutput:
        if not 0 <= chunk_id <= LAST_CHUNK:  # the widget's limits do not apply to a link
            raise SettingsError(f"chunk_id {chunk_id} is out of range: use 0 to {LAST_CHUNK}.")
        progress = NodeProgress(cls.hidden.unique_id)
        places = folders()
        source = readable_file(source_video_path, places) if source_video_path else None
        settings = chunk_settings(
            frames,
            rate=exact_rate(fps) or derived_rate(source, times_to_interpolate),
            codec=codec,
            crf=quality,
            source=source,
        )
        root = folder_in_output(output_dir, places)
        session, record = save_chunk(
            frames, chunk_id, root, session_id or new_session_id(), settings, progress
        )
        return io.NodeOutput(
            session.id,
            str(session.chunk_path(record.index)),
            record.frames,
            f"{record.bytes / 1e6:.2f}",
            ui={"text": tuple(progress.notices)},
        )


def derived_rate(source: Path | None, times: int) -> Fraction:
    """The source's rate times 2**times, exactly.

    Raises:
        SettingsError: no source is known, or `times` is out of range.
    """
    if source is None:
        raise SettingsError(
            "fps 0 means the rate of source_video_path, which is empty: set one of the two."
        )
    return probe(source).rate * frames_per_pair(times)
