"""Turns the chunks of a session into an output: joined as they are, encoded once, or as images.

    route = plan_route(".mp4", EncoderSettings(crf=18), info, mezzanine=FFV1)
    ...                                     # chunks are made with route.chunks
    deliver(session, Path("smooth.mp4"), route.final)

Chunks in the final codec are joined by packet copy. Lossless chunks (a mezzanine) are encoded once
at the end, into a video or into images; this can be repeated without making the chunks again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .callbacks import OnProgress, no_progress
from .carried import kept_metadata
from .concat import JoinResult, OnMade, join
from .container import VideoInput
from .durable import refuse_existing
from .errors import EncoderError, OutputError
from .image_encoder import Depth, ImageFormat, image_format
from .layout import pixel_layout
from .manifest import Json
from .mezzanine import decoded_picture, encode_session, picture_after, remove_encode
from .names import is_for_windows
from .profiles import Encoder, EncoderSettings, Picture, find_profile, resolve_encoder
from .sequence import DEFAULT_STEM, is_image, write_images
from .session import Session
from .window import Window
from .writer import stores_mastering

log = logging.getLogger("tlbvfi.delivery")

Final = Encoder | ImageFormat | None
"""What chunks become: a video of this encoder, images, or (None) a video by packet copy."""

IMAGE_CODECS: dict[str, tuple[str, Depth | None]] = {
    "png": (".png", None),
    "png8": (".png", "8"),
    "png16": (".png", "16"),
    "exr": (".exr", None),
    "exr-half": (".exr", "half"),
    "exr-float": (".exr", "float"),
    "tiff": (".tif", None),
    "jpeg": (".jpg", None),
    "webp": (".webp", None),
}
"""Suffix and depth of each image codec; None: the source's depth, as far as the format has it."""
SUFFIXES = {".jpeg": ".jpg", ".tiff": ".tif"}
"""Alternative spellings of suffixes."""
MEZZANINE_CRF = 10
"""The lowest quality that can be encoded once more without visible loss."""
RGB_CHUNKS = {
    (8, False): "bgr0",
    (8, True): "bgra",
    (16, False): "gbrp16le",
    (16, True): "gbrap16le",
}
"""FFV1's formats by depth and alpha."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How frames get to the output: the encoder of the chunks, and what they become."""

    chunks: Encoder
    final: Final


def plan_route(
    suffix: str,
    wanted: EncoderSettings,
    picture: Picture,
    *,
    mezzanine: EncoderSettings | None = None,
    software_twin: bool = False,
) -> Route:
    """The route of pictures like `picture` to an output with this suffix, each encoder tested here.

    Images come from lossless chunks, because a folder of images cannot be committed at once; so
    do videos if a `mezzanine` is given.

    Raises:
        EncoderError: a setting is unknown or does not fit, or an encoder cannot be opened.
        OutputError: images of this suffix cannot have the depth asked for.
    """
    if is_image(suffix):
        form = _image_format(suffix, wanted, picture)
        chunks = mezzanine or _lossless(form, has_alpha=picture.has_alpha)
        return Route(chunks=_mezzanine(chunks, picture, software_twin), final=form)
    _refuse_images(suffix, wanted)
    if mezzanine is None:
        encoder = resolve_encoder(wanted, picture, container=suffix, software_twin=software_twin)
        return Route(chunks=encoder, final=None)
    chunks = _mezzanine(mezzanine, picture, software_twin)
    decoded = picture_after(chunks, picture.width, picture.height)
    final = resolve_encoder(wanted, decoded, container=suffix, software_twin=software_twin)
    return Route(chunks=chunks, final=final)


def final_of(session: Session, output: Path, wanted: EncoderSettings | None = None) -> Final:
    """What the chunks of a session become at `output`; `wanted` None: a video by packet copy.

    Raises:
        OutputError, EncoderError: as `plan_route`.
    """
    settings = wanted or EncoderSettings()
    if is_image(output.suffix):
        return _image_format(output.suffix, settings, decoded_picture(session))
    if wanted is None:
        return None
    if not (session.manifest.encoder.is_intra or session.manifest.encoder.is_lossless):
        log.warning(
            "Session %s holds %s: its pictures are compressed a second time.",
            session.id,
            session.manifest.encoder.profile,
        )
    _refuse_images(output.suffix, wanted)
    encoder = resolve_encoder(wanted, decoded_picture(session), container=output.suffix)
    tell_of_mastering(encoder, session.manifest.stream.mastering)
    return encoder


def tell_of_mastering(final: Encoder | ImageFormat, mastering: Mapping[str, str]) -> None:
    """Warn if the HDR10 metadata of a source, if any, is not stored in the output."""
    if mastering and not (isinstance(final, Encoder) and stores_mastering(final)):
        name = final.profile if isinstance(final, Encoder) else final.suffix
        log.warning("%s drops the HDR10 mastering metadata.", name)


def final_to_json(final: Final) -> Json | None:
    """What identifies the form of a final file, for storing and comparing."""
    return None if final is None else asdict(final)


def deliver(
    session: Session,
    output: Path,
    final: Final,
    *,
    source: VideoInput | None = None,
    window: Window | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_encode: OnProgress = no_progress,
    on_join: OnProgress = no_progress,
    on_verify: OnProgress = no_progress,
    on_made: OnMade | None = None,
) -> JoinResult:
    """Make `output` from the chunks, complete and verified; all chunks are left for `clean_up`.

    `source`, `window`, `metadata`, `overwrite`: as in `concat.join`. `on_encode`, `on_join` and
    `on_verify` are called with frames done and total frames, and may raise to stop. `on_made` is
    called with the result: just before a video gets its name, or once all images are there.

    Raises:
        SessionError: chunks are missing.
        VerificationError: a chunk or the result is damaged.
        EncoderError: the final encoder fails.
        OutputError: `output` exists or cannot be written.
    """
    if isinstance(final, ImageFormat):
        texts = kept_metadata(metadata or {})
        images = write_images(
            session, output, final, metadata=texts, overwrite=overwrite, on_progress=on_encode
        )
        if on_made is not None:
            on_made(images)
        return images
    refuse_existing(output, overwrite=overwrite)
    chunks = session if final is None else encode_session(session, final, on_progress=on_encode)
    return join(
        chunks,
        output,
        source=source,
        window=window,
        metadata=metadata,
        overwrite=overwrite,
        on_progress=on_join,
        on_verify=on_verify,
        on_made=on_made,
    )


def clean_up(session: Session, *, keep_chunks: bool = False) -> None:
    """Remove what a delivered session needs no more: the final encode's chunks and its own.

    Its own go last: a session without chunks has nothing left to clean up.

    Raises:
        SessionError: the session or its final encode is in use.
    """
    remove_encode(session)
    if not keep_chunks:
        session.drop_chunks()


def output_path(text: str, codec: str) -> Path:
    """The output path that a user's text means: a folder stands for numbered images in it.

    A folder is a name that ends in a slash, an existing folder, or a name without a suffix if the
    codec makes images; `codec` auto makes PNG images.

    Raises:
        OutputError: the name is empty or invalid, lacks a suffix, or is a folder and the codec makes videos.
    """
    if not text or "\0" in text:
        what = "contains a NUL character" if text else "is empty"
        raise OutputError(f"The output name {what}: write one, such as smooth.mp4.")
    path, word = Path(text), codec.lower()
    if sys.platform == "win32" and path.name not in ("", "..") and not is_for_windows(path.name):
        raise OutputError(
            f'Windows stores no file as {path.name}: leave out < > : " | ? * and a dot or space at the '
            "end, and choose no device's name, such as aux or con."
        )
    is_folder = text.endswith(("/", "\\")) or path.is_dir()
    if not is_folder and (path.suffix or word not in IMAGE_CODECS):
        if not path.suffix:
            raise OutputError(
                f"{text} has no suffix: write {text}.mp4 for a video or {text}/ for a folder of "
                "images."
            )
        return path
    suffix, _ = IMAGE_CODECS.get("png" if word == "auto" else word, ("", None))
    if not suffix:
        raise OutputError(f"{path} is a folder and {codec} makes a video: write {path}/out.mp4.")
    return path / f"{DEFAULT_STEM}{suffix}"


def _refuse_images(suffix: str, wanted: EncoderSettings) -> None:
    ending, _ = IMAGE_CODECS.get(wanted.codec.lower(), ("", None))
    if ending not in ("", ".exr"):  # EXR goes into .mov as well
        raise EncoderError(
            f"{wanted.codec} makes images and {suffix} is a video: name a folder, or numbered images "
            f"like {DEFAULT_STEM}{ending}."
        )


def _image_format(suffix: str, wanted: EncoderSettings, picture: Picture) -> ImageFormat:
    suffix, word = suffix.lower(), wanted.codec.lower()
    for option in ("crf", "bitrate", "preset", "pix_fmt"):
        value = getattr(wanted, option)
        if value is not None:
            raise EncoderError(f"{suffix} images take no {option} ({value}): leave it out.")
    if word == "auto":
        return image_format(suffix, picture)
    fitting = [
        name for name, (ending, _) in IMAGE_CODECS.items() if ending == SUFFIXES.get(suffix, suffix)
    ]
    if word not in fitting:
        raise EncoderError(
            f"{wanted.codec} does not make {suffix} images: choose {' or '.join(fitting)}."
        )
    return image_format(suffix, picture, depth=IMAGE_CODECS[word][1])


def _lossless(form: ImageFormat, *, has_alpha: bool) -> EncoderSettings:
    """Settings for chunks that hold everything images of this format can hold."""
    layout = pixel_layout(form.pix_fmt)
    if layout.is_float:
        is_half = form.options.get("format") == "half"
        return EncoderSettings(codec="exr-half" if is_half else "exr-float", pix_fmt=form.pix_fmt)
    return EncoderSettings(codec="ffv1", pix_fmt=RGB_CHUNKS[layout.bits, has_alpha])


def _mezzanine(settings: EncoderSettings, picture: Picture, software_twin: bool) -> Encoder:
    profile = find_profile(settings.codec)
    is_fine = settings.crf is not None and settings.crf <= MEZZANINE_CRF
    if not (profile.is_intra or profile.is_lossless or is_fine):
        quality = "its usual quality" if settings.crf is None else f"crf {settings.crf}"
        raise EncoderError(
            f"{settings.codec} at {quality} is not a mezzanine, because quality would be "
            "lost twice: choose ffv1, h264-lossless, prores or dnxhr, or a crf of 0 to "
            f"{MEZZANINE_CRF}."
        )
    return resolve_encoder(settings, picture, software_twin=software_twin)
