"""A session -> the joined, verified video."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from comfy_api.latest import io

from ..encoding.layout import pixel_layout
from ..encoding.mezzanine import decoded_picture
from ..encoding.profiles import Encoder, resolve_encoder
from ..encoding.session import Session
from ..encoding.writer import MUXERS
from ..tlbvfi.errors import SettingsError
from ..tlbvfi.join import sound_of
from ..tlbvfi.progress import Notice
from . import choices
from .final_file import graph_metadata, join_to, require_form, shown
from .host import NodeProgress, folders
from .kept import session_sounds
from .manual_session import chunks_of_earlier_runs
from .output_settings import container_of, encoder_notices, encoder_settings
from .paths import folder_in_output, is_file, plain_file_name, readable_path
from .sessions import NO_SESSION, find_session, forget_sound_if_joined, require_complete
from .validation import check_file_name, check_session_id, first_problem
from .values import checked


class VideoConcatenator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_VideoConcatenator",
            display_name="TLBVFI Video Concatenator",
            category=f"{choices.CATEGORY}/chunk",
            description="Joins the chunks of a session without re-encoding, adds the source's "
            "sound, verifies the result, and only then removes the chunks.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "session_id",
                    default="",
                    tooltip="The session; link it, so that the chunks are saved first.",
                ),
                io.String.Input(
                    "output_dir",
                    default="",
                    optional=True,
                    tooltip="Folder below ComfyUI's output folder for tlbvfi_chunks and the video.",
                ),
                io.String.Input(
                    "output_filename",
                    default="",
                    optional=True,
                    tooltip="Name of the video, without a folder. Empty: the session's name.",
                ),
                io.Boolean.Input(
                    "cleanup_chunks",
                    default=True,
                    optional=True,
                    tooltip="Remove the chunks once the joined video has been verified.",
                ),
                io.Boolean.Input(
                    "return_frames",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Has no effect: use the video output with Get Video Components.",
                ),
                choices.final_codec(),
                choices.crf(),
            ],
            outputs=[io.Video.Output("video", display_name="video")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(
        cls, session_id: str | None = None, output_filename: str | None = None
    ) -> bool | str:
        return first_problem(
            session_id != "" or NO_SESSION,
            check_session_id(session_id),
            check_file_name(output_filename),
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> float:
        """Never the same: its file may be gone, and chunks may have been added or changed."""
        return float("nan")

    @classmethod
    @checked
    def execute(
        cls,
        session_id: str,
        output_dir: str = "",
        output_filename: str = "",
        cleanup_chunks: bool = True,
        return_frames: bool = False,
        codec: str = "copy",
        crf: int = 18,
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        session = find_session(session_id, *roots(output_dir))
        require_complete(session)
        suffix = session.manifest.encoder.suffix if codec == "copy" else container_of(codec)
        wanted = roots(output_dir)[0] / output_name(output_filename or session.id, suffix)
        final = final_encoder(session, wanted.suffix, codec, crf, progress)
        require_form(session, wanted, final)
        tell_of_earlier_runs(session, progress)
        output = join_to(
            session,
            wanted,
            progress,
            final=final,
            sound=partial(remembered_sound, session, progress),
            metadata=graph_metadata(cls.hidden),
            keep_chunks=not cleanup_chunks,
            is_named=bool(output_filename or output_dir),
        )
        forget_sound_if_joined(session)
        return shown(output, folders().output, progress)


def roots(output_dir: str) -> tuple[Path, ...]:
    """Where sessions are searched: in `output_dir`, then in ComfyUI's output folder itself."""
    places = folders()
    return folder_in_output(output_dir, places), places.output


def output_name(wanted: str, suffix: str) -> str:
    """The wanted file name, with `suffix` added if it has no video suffix."""
    name = plain_file_name(wanted)
    return name if Path(name).suffix.lower() in MUXERS else f"{name}{suffix}"


def final_encoder(
    session: Session, suffix: str, codec: str, crf: int, progress: NodeProgress
) -> Encoder | None:
    """The encoder for a final encode at the join; None if chunks are copied.

    Raises:
        EncoderError: the codec does not fit into a file with this suffix.
    """
    if codec == "copy":
        return None
    picture = decoded_picture(session)
    is_video = pixel_layout(picture.pix_fmt).family != "rgb"
    settings = encoder_settings(codec, crf, "", picture, is_video=is_video)
    encoder = resolve_encoder(settings, picture, container=suffix, software_twin=True)
    for notice in encoder_notices(codec, encoder, picture):
        progress(notice)
    return encoder


def tell_of_earlier_runs(session: Session, progress: NodeProgress) -> None:
    """Say which chunks this run did not save: they may show another clip."""
    if older := chunks_of_earlier_runs(session):
        progress(
            Notice(
                text=f"{len(older)} of the {len(session.records())} chunks of session {session.id} "
                f"(numbers {older[0]} to {older[-1]}) are from an earlier run: if they show "
                "another clip, use another session_id."
            )
        )


def remembered_sound(session: Session, progress: NodeProgress) -> Path | None:
    """The file the session's sound comes from, if there is one that still exists and may be read.

    The session's folder can be written to over HTTP: it is trusted no more than a prompt, unless it
    names the file that a node of this server got from another node.
    """
    sound = sound_of(session)
    if sound is None:
        return None
    named = session_sounds.of(session.folder)
    try:
        is_named = named is not None and sound == str(named)
        path = Path(sound) if is_named else readable_path(sound, folders())
    except SettingsError as error:
        progress(Notice(text=f"The video has no sound, because {error}"))
        return None
    if is_file(path):
        return path
    progress(Notice(text=f"{Path(sound).name} no longer exists, so the video has no sound."))
    return None
