"""ComfyUI workflows that end in a video file, turned into ones that keep every frame.

A node that saves a video compresses it. Interpolating that file and saving it again compresses
twice; keeping the frames, or ending in our own nodes, compresses once. Workflows come in two
formats: what the page saves (UI) and what the server runs (API). Both are edited through the same
few operations, so that the rules are written once. Nothing here reads or changes its argument's
file; a workflow is a plain dict, as JSON gives it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import WorkflowError

Workflow = dict[str, Any]  # JSON
NodeId = int | str
Target = Literal["saveimage", "tlbvfi"]

MAX_BYTES = 256 * 2**20
"""No workflow is larger; a video given by mistake often is."""

FRAMES_FOLDER = "tlbvfi_frames"
RUN_STAMP = "%year%%month%%day%_%hour%%minute%%second%"
"""ComfyUI's server puts the time here: frames of two generations must not share a folder."""


@dataclass(frozen=True, slots=True)
class Link:
    """Output `slot` of a node."""

    node: NodeId
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFrames:
    """A node that now saves frames, and what the video they were meant for was to be."""

    node: NodeId
    rate: Fraction | None
    """Frames per second; None where another node decides it at run time."""
    sound: NodeId | None
    """Node that saves the sound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A rewritten workflow, what was changed in words, and where its frames are."""

    workflow: Workflow
    changes: tuple[str, ...]
    frames: tuple[KeptFrames, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Sockets and widgets of a node type that is read or added. Widgets are (name, type, default)."""

    inputs: tuple[tuple[str, str], ...] = ()
    widgets: tuple[tuple[str, str, Any], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()


_PREFIX = ("filename_prefix", "STRING", "ComfyUI")
_KINDS = {
    "SaveVideo": _Kind(inputs=(("video", "VIDEO"),), widgets=(_PREFIX,)),
    "SaveWEBM": _Kind(
        inputs=(("images", "IMAGE"),),
        widgets=(_PREFIX, ("codec", "COMBO", "vp9"), ("fps", "FLOAT", 24.0)),
    ),
    "SaveAnimatedWEBP": _Kind(
        inputs=(("images", "IMAGE"),), widgets=(_PREFIX, ("fps", "FLOAT", 6.0))
    ),
    "SaveAnimatedPNG": _Kind(
        inputs=(("images", "IMAGE"),), widgets=(_PREFIX, ("fps", "FLOAT", 6.0))
    ),
    "VHS_VideoCombine": _Kind(
        inputs=(
            ("images", "IMAGE"),
            ("audio", "AUDIO"),
            ("meta_batch", "VHS_BatchManager"),
            ("vae", "VAE"),
        ),
        widgets=(
            ("frame_rate", "FLOAT", 8),
            ("loop_count", "INT", 0),
            ("filename_prefix", "STRING", "AnimateDiff"),
            ("format", "COMBO", "image/gif"),
            ("pingpong", "BOOLEAN", False),
        ),
    ),
    "PrimitiveFloat": _Kind(widgets=(("value", "FLOAT", 0.0),)),
    "PrimitiveInt": _Kind(widgets=(("value", "INT", 0),)),
    "SaveImage": _Kind(inputs=(("images", "IMAGE"),), widgets=(_PREFIX,)),
    "SaveAudio": _Kind(inputs=(("audio", "AUDIO"),), widgets=(_PREFIX,)),
    "VAEDecode": _Kind(
        inputs=(("samples", "LATENT"), ("vae", "VAE")), outputs=(("IMAGE", "IMAGE"),)
    ),
    "GetVideoComponents": _Kind(
        inputs=(("video", "VIDEO"),),
        outputs=(("images", "IMAGE"), ("audio", "AUDIO"), ("fps", "FLOAT")),
    ),
    "CreateVideo": _Kind(
        inputs=(("images", "IMAGE"), ("audio", "AUDIO")),
        widgets=(("fps", "FLOAT", 30.0),),
        outputs=(("VIDEO", "VIDEO"),),
    ),
    "TLBVFI_ChunkProcessor": _Kind(
        inputs=(("images", "IMAGE,VIDEO"),),
        widgets=(
            ("model_name", "COMBO", "flow"),
            ("times_to_interpolate", "INT", 1),
            ("fps", "FLOAT", 0.0),
            ("codec", "COMBO", "auto"),
            ("bitrate", "STRING", ""),
            ("gpu_id", "INT", 0),
        ),
        outputs=(("session_id", "STRING"), ("video", "VIDEO")),
    ),
    "TLBVFI_VideoConcatenator": _Kind(
        widgets=(
            ("session_id", "STRING", ""),
            ("output_dir", "STRING", ""),
            ("output_filename", "STRING", ""),
        ),
        outputs=(("video", "VIDEO"),),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saver:
    """How a node that saves a video names what it is given."""

    footage: str
    rate: str | None
    passes_on: bool = True
    """Whether its first output is what came in."""


_SAVERS = {
    "SaveVideo": _Saver(footage="video", rate=None),
    "SaveWEBM": _Saver(footage="images", rate="fps"),
    "SaveAnimatedWEBP": _Saver(footage="images", rate="fps"),
    "SaveAnimatedPNG": _Saver(footage="images", rate="fps"),
    "VHS_VideoCombine": _Saver(footage="images", rate="frame_rate", passes_on=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footage:
    """What a saver is given, as far as the graph says."""

    video: Link | None
    images: Link | None
    rate: Fraction | Link | None = None
    audio: Link | None = None


def rewrite(workflow: Workflow, *, to: Target, model_name: str = "flow") -> Rewrite:
    """A copy of a workflow, UI or API format, that keeps its frames or ends in our nodes.

    `saveimage`: every active node that saves a video becomes a SaveImage, its sound a SaveAudio.
    `tlbvfi`: it becomes TLBVFI_ChunkProcessor and TLBVFI_VideoConcatenator with `model_name`.

    Raises:
        WorkflowError: not a workflow, nothing in it saves a video, or what it does cannot be kept.
    """
    result = copy.deepcopy(workflow)
    changes: list[str] = []
    frames: list[KeptFrames] = []
    for graph in _graphs(result):
        for node in [n for n in graph.active() if graph.kind(n) in _SAVERS]:
            job = _Replacement(graph=graph, saver=node, changes=changes)
            if to == "saveimage":
                frames.append(job.keep_frames())
            else:
                job.interpolate(model_name)
        graph.finish()
    if not changes:
        raise WorkflowError(
            f"No active node of the workflow saves a video ({', '.join(_SAVERS)}): there is nothing "
            "to rewrite."
        )
    return Rewrite(workflow=result, changes=tuple(changes), frames=tuple(frames))


def saves_video(workflow: Workflow) -> bool:
    """Whether there is anything for `rewrite` to do."""
    graphs = list(_graphs(workflow))
    return any(graph.kind(node) in _SAVERS for graph in graphs for node in graph.active())


def is_api_format(workflow: Workflow) -> bool:
    """Whether the server can run this workflow as it is; False: it is what the page saves.

    Raises:
        WorkflowError: it is neither.
    """
    nodes = workflow.get("nodes")
    if isinstance(nodes, list) and all(
        isinstance(n, dict) and {"id", "type"} <= n.keys() for n in nodes
    ):
        return False
    prompt = api_nodes(workflow)
    if prompt and all(
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
        for node in prompt.values()
    ):
        return True
    raise WorkflowError(
        "This is no ComfyUI workflow: save one from the page with File > Save or File > Export (API)."
    )


def api_nodes(workflow: Workflow) -> dict[str, Any]:
    """The nodes of an API workflow, which may be wrapped the way it is posted to the server."""
    inner = workflow.get("prompt")
    return inner if isinstance(inner, dict) and "class_type" not in inner else workflow


def read_workflow(path: Path) -> Workflow:
    """The JSON object in a file.

    Raises:
        WorkflowError: the file cannot be read, or is not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WorkflowError(f"{path} is larger than any workflow: give the .json file itself.")
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read ({error.strerror}): check the name.") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{path} is not JSON: save the workflow from ComfyUI again.") from error
    if not isinstance(workflow, dict):
        raise WorkflowError(f"{path} holds no JSON object: save the workflow from ComfyUI again.")
    return workflow


class _Graph(Protocol):
    """The few things a rewrite does to a graph, in either format."""

    def active(self) -> list[NodeId]: ...
    def kind(self, node: NodeId) -> str: ...
    def source(self, node: NodeId, name: str) -> Link | None: ...
    def value(self, node: NodeId, name: str) -> Any: ...  # noqa: ANN401 - JSON
    def users(self, link: Link) -> list[NodeId]: ...
    def add(self, kind: str, near: NodeId, **values: Any) -> NodeId: ...  # noqa: ANN401 - Link or JSON
    def redirect(self, old: Link, new: Link | None) -> None: ...
    def remove(self, node: NodeId) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replacement:
    """One saver that is being replaced."""

    graph: _Graph
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
                f"{self._described(node)} works in batches of a VHS Meta Batch Manager, which needs "
                "it: remove the manager first, our nodes stream by themselves."
            )
        audio = graph.source(node, "audio")
        return _Footage(
            video=None, images=self._decoded(given), rate=_rate(graph, node, spec.rate), audio=audio
        )

    def _decoded(self, given: Link) -> Link:
        """VHS_VideoCombine takes latents too, where it is given a VAE."""
        vae = self.graph.source(self.saver, "vae")
        if vae is None:
            return given
        return Link(self._add("VAEDecode", "decodes the latents", samples=given, vae=vae), 0)

    def _name(self) -> str:
        """Last part of the saver's prefix, as a plain file name."""
        prefix = str(self.graph.value(self.saver, "filename_prefix") or "")
        return _file_name(re.split(r"[/\\]", re.sub(r"%[^%]*%", "", prefix))[-1]) or "video"

    def _retire(self, footage: _Footage) -> None:
        """Remove the saver, and the CreateVideo before it if nothing else wants its video."""
        graph, node = self.graph, self.saver
        spec = _SAVERS[graph.kind(node)]
        passed_on = (footage.video or footage.images) if spec.passes_on else None
        for user in graph.users(Link(node, 0)) if passed_on is None else ():
            self.changes.append(
                f"{self._described(user)} loses what {self._described(node)} gave it"
            )
        if graph.value(node, "pingpong") is True:
            self.changes.append(f"{self._described(node)} played back and forth: forward only now")
        graph.redirect(Link(node, 0), passed_on)
        self._remove(node)
        while footage.video is not None and not graph.users(footage.video):
            before = footage.video.node
            if graph.kind(before) not in ("CreateVideo", "Reroute"):
                break
            upstream = graph.source(before, "") if graph.kind(before) == "Reroute" else None
            self._remove(before)
            footage = _Footage(video=upstream, images=None)

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


def _through_reroutes(graph: _Graph, link: Link) -> Link:
    while graph.kind(link.node) == "Reroute":
        source = graph.source(link.node, "")
        if source is None:
            break
        link = source
    return link


def _rate(graph: _Graph, node: NodeId, name: str) -> Fraction | Link | None:
    """Frames per second: a number, or the link that brings it."""
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


def _graphs(workflow: Workflow) -> Iterator[_Graph]:
    """The graphs of a workflow: one, and one per subgraph in the UI format."""
    if is_api_format(workflow):
        yield _ApiGraph(nodes=api_nodes(workflow))
        return
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    node_ids = [n["id"] for graph in graphs for n in graph["nodes"] if isinstance(n["id"], int)]
    link_ids = [link for graph in graphs for link in _links(graph)]
    new_node = count(max([workflow.get("last_node_id", 0), *node_ids]) + 1)
    new_link = count(max([workflow.get("last_link_id", 0), *link_ids]) + 1)
    for graph in graphs:
        yield _UiGraph(graph=graph, new_node=new_node, new_link=new_link)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ApiGraph:
    """{id: {class_type, inputs: {name: value or [id, slot]}}}."""

    nodes: dict[str, Any]

    def active(self) -> list[NodeId]:
        return list(self.nodes)

    def kind(self, node: NodeId) -> str:
        return self.nodes[str(node)]["class_type"] if str(node) in self.nodes else ""

    def source(self, node: NodeId, name: str) -> Link | None:
        value = self.nodes[str(node)]["inputs"].get(name)
        return Link(str(value[0]), int(value[1])) if _is_api_link(value) else None

    def value(self, node: NodeId, name: str) -> Any:  # noqa: ANN401 - JSON
        value = self.nodes[str(node)]["inputs"].get(name)
        return None if _is_api_link(value) else value

    def users(self, link: Link) -> list[NodeId]:
        return [node for node, _ in self._inputs_from(link)]

    def add(self, kind: str, near: NodeId, **values: Any) -> NodeId:  # noqa: ANN401 - Link or JSON
        inputs = {name: default for name, _, default in _KINDS[kind].widgets}
        inputs |= {
            name: [value.node, value.slot] if isinstance(value, Link) else value
            for name, value in values.items()
            if value is not None
        }
        numbers = [int(node) for node in self.nodes if node.isdecimal()]
        node = str(max(numbers, default=0) + 1)
        self.nodes[node] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
        return node

    def redirect(self, old: Link, new: Link | None) -> None:
        for node, name in self._inputs_from(old):
            inputs = self.nodes[node]["inputs"]
            if new is None:
                del inputs[name]
            else:
                inputs[name] = [new.node, new.slot]

    def remove(self, node: NodeId) -> None:
        del self.nodes[str(node)]

    def finish(self) -> None:
        """Nothing is kept apart from the nodes."""

    def _inputs_from(self, link: Link) -> list[tuple[str, str]]:
        wanted = [str(link.node), link.slot]
        return [
            (node, name)
            for node, content in self.nodes.items()
            for name, value in content["inputs"].items()
            if _is_api_link(value) and [str(value[0]), value[1]] == wanted
        ]


def _is_api_link(value: Any) -> bool:  # noqa: ANN401 - JSON
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


_INSIDE, _OUTSIDE = -10, -20
"""Ids that the links of a subgraph give to its own inputs and outputs."""


@dataclass(slots=True)
class _Wire:
    """A link of the UI format: from (node, slot) to (node, slot)."""

    origin: NodeId
    origin_slot: int
    target: NodeId
    target_slot: int
    type: str
    kept: dict[str, Any] = field(default_factory=dict)
    """What else a subgraph's link says."""


def _links(graph: Mapping[str, Any]) -> dict[int, _Wire]:
    """Links by id: arrays at the top level, objects in subgraphs."""
    found = {}
    for link in graph.get("links") or []:
        if isinstance(link, dict):
            kept = {k: v for k, v in link.items() if k == "parentId"}
            names = ("origin_id", "origin_slot", "target_id", "target_slot", "type")
            found[link["id"]] = _Wire(*[link[name] for name in names], kept=kept)
        elif link is not None:
            found[link[0]] = _Wire(*link[1:6])
    return found


class _UiGraph:
    """What the page saves: nodes with sockets and positional widget values, and a list of links."""

    def __init__(
        self, *, graph: dict[str, Any], new_node: Iterator[int], new_link: Iterator[int]
    ) -> None:
        self._graph = graph
        self._nodes: dict[NodeId, dict[str, Any]] = {n["id"]: n for n in graph["nodes"]}
        self._wires = _links(graph)
        self._has_objects = any(isinstance(link, dict) for link in graph.get("links") or [])
        self._new_node, self._new_link = new_node, new_link

    def active(self) -> list[NodeId]:
        return [n for n, content in self._nodes.items() if content.get("mode", 0) == 0]

    def kind(self, node: NodeId) -> str:
        return self._nodes.get(node, {}).get("type", "")  # a subgraph's ends are no nodes

    def source(self, node: NodeId, name: str) -> Link | None:
        for socket in self._nodes[node].get("inputs") or []:
            wire = self._wires.get(socket.get("link"))
            if socket.get("name") == name and wire is not None:
                return Link(wire.origin, wire.origin_slot)
        return None

    def value(self, node: NodeId, name: str) -> Any:  # noqa: ANN401 - JSON
        values = self._nodes[node].get("widgets_values")
        if isinstance(values, dict):
            return values.get(name)
        names = [widget for widget, _, _ in _KINDS[self.kind(node)].widgets]
        if not isinstance(values, list) or name not in names[: len(values)]:
            return None
        return values[names.index(name)]

    def users(self, link: Link) -> list[NodeId]:
        return [wire.target for _, wire in self._from(link)]

    def add(self, kind: str, near: NodeId, **values: Any) -> NodeId:  # noqa: ANN401 - Link or JSON
        spec, node = _KINDS[kind], next(self._new_node)
        inputs = [{"name": name, "type": type_, "link": None} for name, type_ in spec.inputs]
        inputs += [
            {"name": name, "type": type_, "widget": {"name": name}, "link": None}
            for name, type_, _ in spec.widgets
            if isinstance(values.get(name), Link)
        ]
        widgets = [
            default if values.get(name) is None or isinstance(values[name], Link) else values[name]
            for name, _, default in spec.widgets
        ]
        self._nodes[node] = {
            "id": node,
            "type": kind,
            "pos": self._place(near),
            "size": [320, 80 + 26 * len(widgets)],
            "flags": {},
            "order": len(self._nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": n, "type": t, "links": []} for n, t in spec.outputs],
            "properties": {"Node name for S&R": kind},
            "widgets_values": widgets,
        }
        for slot, socket in enumerate(inputs):
            origin = values.get(socket["name"])
            if isinstance(origin, Link):
                self._connect(origin, node, slot)
        return node

    def redirect(self, old: Link, new: Link | None) -> None:
        for link_id, wire in self._from(old):
            if new is None:
                self._disconnect(link_id)
            else:
                wire.origin, wire.origin_slot = new.node, new.slot

    def remove(self, node: NodeId) -> None:
        for link_id, wire in list(self._wires.items()):
            if node in (wire.origin, wire.target):
                self._disconnect(link_id)
        del self._nodes[node]

    def finish(self) -> None:
        """Write nodes, links, what every output feeds, and the highest ids back."""
        for node, content in self._nodes.items():
            for slot, output in enumerate(content.get("outputs") or []):
                output["links"] = [link_id for link_id, _ in self._from(Link(node, slot))]
        self._finish_ends()
        self._graph["nodes"] = list(self._nodes.values())
        self._graph["links"] = [self._written(i, wire) for i, wire in self._wires.items()]
        last_node = max((n for n in self._nodes if isinstance(n, int)), default=0)
        last_link = max(self._wires, default=0)
        for place, names in (
            (self._graph, ("last_node_id", "last_link_id")),
            (self._graph.get("state", {}), ("lastNodeId", "lastLinkId")),
        ):
            for name, last in zip(names, (last_node, last_link), strict=True):
                if name in place:
                    place[name] = max(place[name], last)

    def _finish_ends(self) -> None:
        """A subgraph's own inputs and outputs list their links too."""
        wires = self._wires.items()
        for slot, end in enumerate(self._graph.get("inputs") or []):
            end["linkIds"] = [i for i, w in wires if (w.origin, w.origin_slot) == (_INSIDE, slot)]
        for slot, end in enumerate(self._graph.get("outputs") or []):
            end["linkIds"] = [i for i, w in wires if (w.target, w.target_slot) == (_OUTSIDE, slot)]

    def _written(self, link_id: int, wire: _Wire) -> dict[str, Any] | list[Any]:
        if not self._has_objects:
            ends = [wire.origin, wire.origin_slot, wire.target, wire.target_slot]
            return [link_id, *ends, wire.type]
        return {
            "id": link_id,
            "origin_id": wire.origin,
            "origin_slot": wire.origin_slot,
            "target_id": wire.target,
            "target_slot": wire.target_slot,
            "type": wire.type,
            **wire.kept,
        }

    def _from(self, link: Link) -> list[tuple[int, _Wire]]:
        ends = (link.node, link.slot)
        return [(i, w) for i, w in self._wires.items() if (w.origin, w.origin_slot) == ends]

    def _connect(self, origin: Link, target: NodeId, slot: int) -> None:
        link_id, socket = next(self._new_link), self._nodes[target]["inputs"][slot]
        self._wires[link_id] = _Wire(origin.node, origin.slot, target, slot, self._type_of(origin))
        socket["link"] = link_id

    def _disconnect(self, link_id: int) -> None:
        wire = self._wires.pop(link_id)
        if wire.target in self._nodes:
            self._nodes[wire.target]["inputs"][wire.target_slot]["link"] = None

    def _type_of(self, origin: Link) -> str:
        outputs = self._nodes.get(origin.node, {}).get("outputs") or []
        if origin.slot < len(outputs):
            return outputs[origin.slot].get("type", "*")
        return next((wire.type for _, wire in self._from(origin)), "*")  # a subgraph's own input

    def _place(self, near: NodeId) -> list[float]:
        """Where the node stands that is replaced, one step further for every node added there."""
        x, y = _position(self._nodes[near].get("pos"))
        taken = {_position(content.get("pos")) for n, content in self._nodes.items() if n != near}
        while (x, y) in taken:
            x += 360
        return [x, y]


def _position(pos: Any) -> tuple[float, float]:  # noqa: ANN401 - JSON
    """Older files hold {"0": x, "1": y}."""
    if isinstance(pos, dict):
        pos = [pos.get("0", 0), pos.get("1", 0)]
    return (float(pos[0]), float(pos[1])) if pos else (0.0, 0.0)
