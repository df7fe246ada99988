"""Rewrites ComfyUI workflows that end in a video file so that they keep every frame.

A node that saves a video compresses it. Interpolating that file and saving it again compresses
twice; keeping the frames, or ending in our own nodes, compresses once.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from .errors import WorkflowError
from .workflow import Graph, Link, NodeId, Workflow, graphs

Target = Literal["saveimage", "tlbvfi"]

DAMAGE = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError),
)
"""Errors from a workflow that was not saved by ComfyUI."""
FRAMES_FOLDER = "tlbvfi_frames"
RUN_STAMP = "%year%%month%%day%_%hour%%minute%%second%"
"""ComfyUI's server replaces this with the time: two generations must not share a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFrames:
    """A node that now saves frames, and the rate and sound of the video it replaces."""

    node: NodeId
    rate: Fraction | None
    """Frames per second; None if another node decides it at run time."""
    sound: NodeId | None
    """Node that saves the sound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A rewritten workflow, its changes in words, and the nodes that keep its frames."""

    workflow: Workflow
    changes: tuple[str, ...]
    frames: tuple[KeptFrames, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saver:
    """The input names of a node that saves a video."""

    footage: str
    rate: str | None
    passes_on: bool = True
    """Whether its first output is its footage, unchanged."""


_SAVERS = {
    "SaveVideo": _Saver(footage="video", rate=None),
    "SaveWEBM": _Saver(footage="images", rate="fps"),
    "SaveAnimatedWEBP": _Saver(footage="images", rate="fps"),
    "SaveAnimatedPNG": _Saver(footage="images", rate="fps"),
    "VHS_VideoCombine": _Saver(footage="images", rate="frame_rate", passes_on=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footage:
    """The inputs of a saver, as far as the graph states them."""

    video: Link | None
    images: Link | None
    rate: Fraction | Link | None = None
    audio: Link | None = None


def rewrite(workflow: Workflow, *, to: Target, model_name: str = "flow") -> Rewrite:
    """A copy of a workflow, UI or API format, that keeps its frames or ends in our nodes.

    `saveimage`: every active node that saves a video becomes a SaveImage, its sound a SaveAudio.
    `tlbvfi`: it becomes TLBVFI_ChunkProcessor and TLBVFI_VideoConcatenator with `model_name`.

    Raises:
        WorkflowError: not a workflow, nothing in it saves a video, or it cannot be rewritten.
    """
    try:
        return _rewritten(copy.deepcopy(workflow), to, model_name)
    except DAMAGE as error:
        raise WorkflowError(
            f"The workflow contradicts itself ({type(error).__name__}: {error}): open it in ComfyUI "
            "and save it again."
        ) from error


def _rewritten(result: Workflow, to: Target, model_name: str) -> Rewrite:
    changes: list[str] = []
    frames: list[KeptFrames] = []
    for graph in graphs(result):
        savers = [node for node in graph.active() if graph.kind(node) in _SAVERS]
        for node in savers:
            job = _Replacement(graph=graph, saver=node, changes=changes)
            if to == "saveimage":
                frames.append(job.keep_frames())
            else:
                job.interpolate(model_name)
        if savers:
            graph.finish()
    if not changes:
        raise WorkflowError(
            f"No active node of the workflow saves a video ({', '.join(_SAVERS)}): there is nothing "
            "to rewrite."
        )
    return Rewrite(workflow=result, changes=tuple(changes), frames=tuple(frames))


def saves_video(workflow: Workflow) -> bool:
    """Whether there is anything for `rewrite` to do."""
    return any(graph.kind(node) in _SAVERS for graph in graphs(workflow) for node in graph.active())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replacement:
    """The replacement of one saver."""

    graph: Graph
    saver: NodeId
    changes: list[str]

    def keep_frames(self) -> KeptFrames:
        """SaveImage instead of the saver, SaveAudio for its sound."""
        footage = self._footage()
        name = _file_name(f"{self._name()}_{self.saver}")  # two savers may share a prefix
        prefix = f"{FRAMES_FOLDER}/{name}_{RUN_STAMP}"
        images = footage.images
        if images is None:
            parts = self._add("GetVideoComponents", "takes the video apart", video=footage.video)
            images = Link(parts, 0)
        saves = f"saves every frame of {self._described(self.saver)}"
        node = self._add("SaveImage", saves, images=images, filename_prefix=f"{prefix}/frame")
        sound = None
        if footage.audio is not None:
            sound = self._add(
                "SaveAudio",
                "saves its sound",
                audio=footage.audio,
                filename_prefix=f"{prefix}/sound",
            )
        self._retire(footage)
        rate = footage.rate if isinstance(footage.rate, Fraction) else None
        if rate is not None:
            self.changes.append(f"the frames of {self._described(node)} play at --input-fps {rate}")
        return KeptFrames(node=node, rate=rate, sound=sound)

    def interpolate(self, model_name: str) -> None:
        """Our nodes instead of the saver; sound and exact rate travel in the VIDEO."""
        footage = self._footage()
        clip, fps = footage.video, 0.0
        if clip is None and isinstance(footage.rate, Fraction) and footage.audio is None:
            clip, fps = footage.images, float(2 * footage.rate)
        elif clip is None:
            carries = "carries frame rate and sound"
            rate = float(footage.rate) if isinstance(footage.rate, Fraction) else footage.rate
            created = self._add(
                "CreateVideo", carries, images=footage.images, fps=rate, audio=footage.audio
            )
            clip = Link(created, 0)
        saves = f"interpolates what {self._described(self.saver)} saved, with {model_name}"
        chunks = self._add(
            "TLBVFI_ChunkProcessor", saves, images=clip, model_name=model_name, fps=fps
        )
        name = self._name()
        self._add(
            "TLBVFI_VideoConcatenator",
            "joins the result",
            session_id=Link(chunks, 0),
            output_filename=f"{name}.mp4",
        )
        self._retire(footage)

    def _footage(self) -> _Footage:
        graph, node = self.graph, self.saver
        spec = _SAVERS[graph.kind(node)]
        given = graph.source(node, spec.footage)
        if given is None:
            raise WorkflowError(
                f"{self._described(node)} is linked to nothing: connect or remove it."
            )
        if spec.rate is None:
            creator = _through_reroutes(graph, given)
            if graph.kind(creator.node) != "CreateVideo":
                return _Footage(video=given, images=None)
            images = graph.source(creator.node, "images")
            audio = graph.source(creator.node, "audio")
            return _Footage(
                video=given, images=images, rate=_rate(graph, creator.node, "fps"), audio=audio
            )
        if graph.source(node, "meta_batch") is not None:
            raise WorkflowError(
                f"{self._described(node)} belongs to a VHS Meta Batch Manager, which needs it: "
                "remove the manager first, as our nodes stream anyway."
            )
        audio = graph.source(node, "audio")
        return _Footage(
            video=None, images=self._decoded(given), rate=_rate(graph, node, spec.rate), audio=audio
        )

    def _decoded(self, given: Link) -> Link:
        """The images: VHS_VideoCombine also takes latents, if it is given a VAE."""
        vae = self.graph.source(self.saver, "vae")
        if vae is None:
            return given
        return Link(self._add("VAEDecode", "decodes the latents", samples=given, vae=vae), 0)

    def _name(self) -> str:
        """Last part of the saver's prefix, as a plain file name."""
        prefix = str(self.graph.value(self.saver, "filename_prefix") or "")
        return _file_name(re.split(r"[/\\]", re.sub(r"%[^%]*%", "", prefix))[-1]) or "video"

    def _retire(self, footage: _Footage) -> None:
        """Remove the saver, and the CreateVideo before it if nothing else uses its video."""
        graph, node = self.graph, self.saver
        spec = _SAVERS[graph.kind(node)]
        passed_on = (footage.video or footage.images) if spec.passes_on else None
        for user in graph.users(Link(node, 0)) if passed_on is None else ():
            self.changes.append(
                f"{self._described(user)} loses its input from {self._described(node)}"
            )
        if graph.value(node, "pingpong") is True:
            self.changes.append(f"{self._described(node)} played back and forth: forward only now")
        graph.redirect(Link(node, 0), passed_on)
        self._remove(node)
        video = footage.video
        while video is not None and not graph.users(video):
            kind = graph.kind(video.node)
            if kind not in ("CreateVideo", "Reroute"):
                break
            upstream = graph.source(video.node, "") if kind == "Reroute" else None
            self._remove(video.node)
            video = upstream

    def _add(self, kind: str, does: str, **values: Any) -> NodeId:  # noqa: ANN401 - Link or JSON
        node = self.graph.add(kind, self.saver, **values)
        self.changes.append(f"+ {self._described(node)} {does}")
        return node

    def _remove(self, node: NodeId) -> None:
        self.changes.append(f"- {self._described(node)} removed")
        self.graph.remove(node)

    def _described(self, node: NodeId) -> str:
        return f"node {node} {self.graph.kind(node)}"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._-")


def _through_reroutes(graph: Graph, link: Link) -> Link:
    passed: set[NodeId] = set()  # a damaged graph may contain a loop
    while graph.kind(link.node) == "Reroute" and link.node not in passed:
        passed.add(link.node)
        link = graph.source(link.node, "") or link
    return link


def _rate(graph: Graph, node: NodeId, name: str) -> Fraction | Link | None:
    """Frames per second: a number, or the link that provides it."""
    source = graph.source(node, name)
    if source is None:
        return _number(graph.value(node, name))
    if graph.kind(source.node) in ("PrimitiveFloat", "PrimitiveInt"):
        return _number(graph.value(source.node, "value")) or source
    return source


def _number(value: Any) -> Fraction | None:  # noqa: ANN401 - JSON
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return Fraction(str(value))
