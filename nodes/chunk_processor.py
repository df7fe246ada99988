"""A whole clip, as images or a video file -> a session of chunks and the joined video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from comfy_api.latest import io

from ..encoding.memory import MemorySource
from ..encoding.probe import VideoInfo
from ..encoding.session import MANIFEST, Session
from ..encoding.unchanged import Facts
from ..tlbvfi.chunks import make_chunks
from ..tlbvfi.config import ChunkLength, JobConfig
from ..tlbvfi.job import Destination, start_session
from ..tlbvfi.method import Method
from ..tlbvfi.plan import make_plan
from ..tlbvfi.progress import Notice, Reading
from ..tlbvfi.spans import CutRule
from . import choices
from .clip import Clip, ImagesOrVideo, open_clip
from .final_file import graph_metadata, join_to, shown, was_joined
from .graph import is_linked, leads_to, running_prompt
from .host import NodeProgress, folders
from .kept import kept_results, session_sounds
from .models import ModelWish, check_model, checkpoint_versions, chosen_method
from .output_settings import (
    container_of,
    encoder_notices,
    encoder_settings,
    exact_rate,
    frames_per_pair,
)
from .sessions import forget_sound_if_joined
from .validation import check_bitrate, check_session_id, first_problem
from .values import checked

CONCATENATOR = "TLBVFI_VideoConcatenator"
SESSION, VIDEO = 0, 1
"""Indices of the outputs."""
CHUNK_SECONDS = Fraction(2)
"""Length of a chunk at 1080p; chunks are longer for smaller pictures, shorter for larger ones."""


class ChunkProcessor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_ChunkProcessor",
            display_name="TLBVFI Chunk Processor (All-in-One)",
            category=f"{choices.CATEGORY}/chunk",
            description="Makes a whole video smoother, streaming to a file: memory stays flat, Cancel "
            "and crashes cost at most one chunk, and queueing the same graph again resumes where it "
            "stopped.",
            search_aliases=["slow motion", "smooth video", "interpolate video", "vfi"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input(
                    "images",
                    [io.Image, io.Video],
                    tooltip="A batch of images or a video. A video file is streamed from disk, with "
                    "its trim and sound, and never loaded whole.",
                ),
                choices.model_name(),
                choices.times(default=1, minimum=1, optional=False),
                io.Float.Input(
                    "fps",
                    default=30.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frame rate of the result. 0 with a video: its own rate times "
                    "2^times_to_interpolate, exactly. 23.976, 29.97, 59.94 mean 24000/1001 and so on.",
                ),
                choices.codec(optional=False),
                io.String.Input(
                    "bitrate",
                    default="",
                    tooltip="Such as 20M or 800k. Empty: constant quality set by crf, usually best.",
                ),
                choices.gpu_id(maximum=100, optional=False),
                io.String.Input(
                    "session_id",
                    default="",
                    optional=True,
                    tooltip="Folder of the chunks below output/tlbvfi_chunks. Empty: derived from the "
                    "source and the settings, so that the same job finds its own session.",
                ),
                io.Boolean.Input(
                    "save_debug_images",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Has no effect: the preview shows the frames as they are made.",
                ),
                choices.enable_tf32(),
                choices.sample_steps(),
                choices.flow_scale(),
                choices.tile_size(),
                choices.cpu_offload(),
                io.Boolean.Input(
                    "debug",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Write every event of the job to the server's log.",
                ),
                *choices.new_inputs(),
                choices.crf(),
                choices.scene_cuts(),
            ],
            outputs=[
                io.String.Output("session", display_name="session_id"),
                io.Video.Output("video", display_name="video"),
            ],
            hidden=[
                io.Hidden.unique_id,
                io.Hidden.prompt,
                io.Hidden.dynprompt,
                io.Hidden.extra_pnginfo,
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        model_name: str | None = None,
        session_id: str | None = None,
        bitrate: str | None = None,
        model: object = False,
        interp_model: object = False,
    ) -> bool | str:
        return first_problem(
            check_model(model_name, linked=model is None or interp_model is None),
            check_session_id(session_id),
            check_bitrate(bitrate),
        )

    @classmethod
    def fingerprint_inputs(
        cls, model_name: str | None = None, **inputs: object
    ) -> tuple[str, list[Facts | None]]:
        """The same only as long as the files behind its results and the checkpoint are the same."""
        node_id = getattr(cls.hidden, "unique_id", "")
        return kept_results.token(node_id), checkpoint_versions(model_name)

    @classmethod
    @checked
    def execute(
        cls,
        images: ImagesOrVideo,
        model_name: str,
        times_to_interpolate: int,
        fps: float,
        codec: str,
        bitrate: str,
        gpu_id: int,
        session_id: str = "",
        save_debug_images: bool = False,
        debug: bool = False,
        seed: int = 0,
        crf: int = 18,
        scene_cuts: CutRule = "hold",
        **wish: Any,  # noqa: ANN401 - the fields of ModelWish by name
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id, log_events=debug)
        places, rate, suffix = folders(), exact_rate(fps), container_of(codec)
        per_pair = frames_per_pair(times_to_interpolate)
        batch_rate = None if rate is None else rate / per_pair
        clip = open_clip(images, batch_rate=batch_rate, temp=places.temp)
        with no_copy_left_by_failure(clip):
            config = JobConfig(
                **timing(clip, times_to_interpolate, rate, progress),
                encoder=encoder_settings(
                    codec, crf, bitrate, clip.source.info, is_video=clip.is_video
                ),
                software_twin=True,
                seed=seed,
                cuts=scene_cuts,
                start=clip.start,
                end=clip.end,
                chunk=chunk_length(clip.source.info),
            )
            wished = ModelWish(model_name=model_name, gpu_id=gpu_id, **wish)
            destination = Destination(
                output=places.output / f"{session_id or 'video'}{suffix}",
                root=places.output,
                session_id=session_id or None,
                sound=clip.sound,
            )
            with clip.source, chosen_method(wished, progress) as method:
                session = make_session(clip, method, config, destination, progress)
        return deliver(session, suffix, clip, cls.hidden, progress)


@contextmanager
def no_copy_left_by_failure(clip: Clip) -> Iterator[None]:
    """Remove the copy of a clip in memory if the block fails: the next run makes it again."""
    try:
        yield
    except BaseException:
        if clip.is_copy and clip.sound is not None:
            session_sounds.discard(clip.sound)
        raise


def deliver(
    session: Session,
    suffix: str,
    clip: Clip,
    hidden: Any,  # noqa: ANN401 - ComfyUI's untyped holder
    progress: NodeProgress,
) -> io.NodeOutput:
    """The node's outputs: the session joined here, unless a concatenator in the graph does it."""
    root = folders().output
    prompt = running_prompt(hidden.dynprompt)
    joins_later = leads_to(prompt, hidden.unique_id, SESSION, CONCATENATOR)
    if joins_later:  # the result is then no video, or chunks that are about to be removed
        kept_results.void(hidden.unique_id)
    if clip.sound is not None:
        session_sounds.keep(session.folder, clip.sound, is_copy=clip.is_copy)
    if joins_later and not is_linked(prompt, hidden.unique_id, VIDEO):
        state = "ready for the concatenator" if session.has_chunks() else "joined before"
        text = progress.show(f"chunks {state}: {len(session.records())}")
        forget_sound_if_joined(session)
        return io.NodeOutput(session.id, None, ui={"text": (text,)})
    output = join_to(
        session,
        root / f"{session.id}{suffix}",
        progress,
        sound=lambda: clip.sound,
        metadata=graph_metadata(hidden),
        keep_chunks=joins_later,
    )
    forget_sound_if_joined(session)
    kept_results.keep(hidden.unique_id, output, session.folder / MANIFEST)
    return shown(output, root, progress, session.id)


def timing(
    clip: Clip, times: int, rate: Fraction | None, progress: NodeProgress
) -> dict[str, Any]:  # fields of JobConfig
    """How many frames, and when: 2**times as many, or another rate for a video."""
    natural = clip.source.timestamps.rate * frames_per_pair(times)
    if not clip.is_video or rate is None or rate == natural:
        return {"times": times}
    progress(
        Notice(
            text=f"fps {float(rate):g} is not the video's own rate times {2**times}, so frames are "
            f"retimed and times_to_interpolate is not used: set fps to 0 for {float(natural):g}."
        )
    )
    return {"fps": rate}


def chunk_length(info: VideoInfo) -> ChunkLength:
    """Two seconds at 1080p, four below, half a second at 4K: the most that a crash may cost."""
    seconds = CHUNK_SECONDS * Fraction(1920 * 1080, info.width * info.height)
    return ChunkLength(seconds=min(2 * CHUNK_SECONDS, max(CHUNK_SECONDS / 4, seconds)))


def make_session(
    clip: Clip, method: Method, config: JobConfig, destination: Destination, progress: NodeProgress
) -> Session:
    """The session with all its chunks; chunks from earlier runs of the same job are kept.

    Raises:
        SessionMismatch: the session id belongs to another job.
    """
    if isinstance(clip.source, MemorySource):  # which the plan would read without a word
        clip.source.identify(
            lambda done, total: progress(Reading(what="frame", done=done, total=total))
        )
    plan = make_plan(clip.source, method, config, suffix=destination.output.suffix)
    for notice in encoder_notices(config.encoder.codec, plan.manifest.encoder, clip.source.info):
        progress(notice)
    session = start_session(clip.source, plan, destination)
    if session.has_chunks() or not was_joined(session):
        with session.locked():
            make_chunks(session, clip.source, method, plan, on_event=progress)
    return session
