"""A ComfyUI workflow as an editable graph, in the web page's format or the server's.

The page (UI format) saves nodes with sockets and positional widget values, and a list of links; the
server (API format) takes {id: {class_type, inputs}}. Both are edited through the same few
operations. A workflow is a plain dict from JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from .errors import WorkflowError

Workflow = dict[str, Any]  # JSON
NodeId = int | str

MAX_BYTES = 256 * 2**20
"""No workflow is larger; a video passed by mistake often is."""


FARTHEST = 1e9
"""Where the search for a free place ends: far beyond it, adding a step would not change a float."""


@dataclass(frozen=True, slots=True)
class Link:
    """Output `slot` of a node."""

    node: NodeId
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Sockets and widgets of a node type that we read or add. Widgets are (name, type, default)."""

    inputs: tuple[tuple[str, str], ...] = ()
    widgets: tuple[tuple[str, str, Any], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()


_PREFIX = ("filename_prefix", "STRING", "ComfyUI")
KINDS = {
    "SaveVideo": Kind(inputs=(("video", "VIDEO"),), widgets=(_PREFIX,)),
    "SaveWEBM": Kind(
        inputs=(("images", "IMAGE"),),
        widgets=(_PREFIX, ("codec", "COMBO", "vp9"), ("fps", "FLOAT", 24.0)),
    ),
    "SaveAnimatedWEBP": Kind(
        inputs=(("images", "IMAGE"),), widgets=(_PREFIX, ("fps", "FLOAT", 6.0))
    ),
    "SaveAnimatedPNG": Kind(
        inputs=(("images", "IMAGE"),), widgets=(_PREFIX, ("fps", "FLOAT", 6.0))
    ),
    "VHS_VideoCombine": Kind(
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
    "PrimitiveFloat": Kind(widgets=(("value", "FLOAT", 0.0),)),
    "PrimitiveInt": Kind(widgets=(("value", "INT", 0),)),
    "SaveImage": Kind(inputs=(("images", "IMAGE"),), widgets=(_PREFIX,)),
    "SaveAudio": Kind(inputs=(("audio", "AUDIO"),), widgets=(_PREFIX,)),
    "VAEDecode": Kind(
        inputs=(("samples", "LATENT"), ("vae", "VAE")), outputs=(("IMAGE", "IMAGE"),)
    ),
    "GetVideoComponents": Kind(
        inputs=(("video", "VIDEO"),),
        outputs=(("images", "IMAGE"), ("audio", "AUDIO"), ("fps", "FLOAT")),
    ),
    "CreateVideo": Kind(
        inputs=(("images", "IMAGE"), ("audio", "AUDIO")),
        widgets=(("fps", "FLOAT", 30.0),),
        outputs=(("VIDEO", "VIDEO"),),
    ),
    "TLBVFI_ChunkProcessor": Kind(
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
    "TLBVFI_VideoConcatenator": Kind(
        widgets=(
            ("session_id", "STRING", ""),
            ("output_dir", "STRING", ""),
            ("output_filename", "STRING", ""),
        ),
        outputs=(("video", "VIDEO"),),
    ),
}


def is_api_format(workflow: Workflow) -> bool:
    """Whether the server can run this workflow as it is; False: it is in the page's format.

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
        "This is not a ComfyUI workflow: save one in ComfyUI by File > Save or File > Export (API)."
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
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a device has no size and no end
        if len(content) > MAX_BYTES:
            raise WorkflowError(f"{path} is larger than any workflow: give the .json file itself.")
        workflow = json.loads(content.decode("utf-8-sig"))  # editors on Windows write a BOM
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read ({error.strerror}): check the name.") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{path} is not JSON: save the workflow from ComfyUI again.") from error
    if not isinstance(workflow, dict):
        raise WorkflowError(f"{path} is not a JSON object: save the workflow from ComfyUI again.")
    return workflow


class Graph(Protocol):
    """The operations a rewrite needs on a graph, in either format."""

    def active(self) -> list[NodeId]: ...
    def kind(self, node: NodeId) -> str: ...
    def source(self, node: NodeId, name: str) -> Link | None: ...
    def value(self, node: NodeId, name: str) -> Any: ...  # noqa: ANN401 - JSON
    def users(self, link: Link) -> list[NodeId]: ...
    def add(self, kind: str, near: NodeId, **values: Any) -> NodeId: ...  # noqa: ANN401 - Link or JSON
    def redirect(self, old: Link, new: Link | None) -> None: ...
    def remove(self, node: NodeId) -> None: ...
    def finish(self) -> None: ...


def graphs(workflow: Workflow) -> Iterator[Graph]:
    """The graphs of a workflow: one, and one per subgraph in the UI format."""
    if is_api_format(workflow):
        yield _ApiGraph(nodes=api_nodes(workflow))
        return
    parts = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    node_ids = [n["id"] for part in parts for n in part["nodes"] if isinstance(n["id"], int)]
    link_ids = [link for part in parts for link in _links(part)]
    new_node = count(max([workflow.get("last_node_id", 0), *node_ids]) + 1)
    new_link = count(max([workflow.get("last_link_id", 0), *link_ids]) + 1)
    for part in parts:
        yield _UiGraph(graph=part, new_node=new_node, new_link=new_link)


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
        inputs = {name: default for name, _, default in KINDS[kind].widgets}
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
        """Nothing to do: the nodes are edited in place."""

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
    """Other fields of a subgraph's link."""


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
    """The page's format: nodes with sockets and positional widget values, and a list of links."""

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
        return self._nodes.get(node, {}).get("type", "")  # a subgraph's ends are not nodes

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
        names = [widget for widget, _, _ in KINDS[self.kind(node)].widgets]
        if not isinstance(values, list) or name not in names[: len(values)]:
            return None
        return values[names.index(name)]

    def users(self, link: Link) -> list[NodeId]:
        return [wire.target for _, wire in self._from(link)]

    def add(self, kind: str, near: NodeId, **values: Any) -> NodeId:  # noqa: ANN401 - Link or JSON
        spec, node = KINDS[kind], next(self._new_node)
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
                self._fed_by(old).remove(link_id)
                self._fed_by(new).append(link_id)
                wire.origin, wire.origin_slot = new.node, new.slot

    def remove(self, node: NodeId) -> None:
        for link_id, wire in list(self._wires.items()):
            if node in (wire.origin, wire.target):
                self._disconnect(link_id)
        del self._nodes[node]

    def finish(self) -> None:
        """Write nodes, links and the highest ids back."""
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
        self._fed_by(origin).append(link_id)
        socket["link"] = link_id

    def _disconnect(self, link_id: int) -> None:
        wire = self._wires.pop(link_id)
        fed = self._fed_by(Link(wire.origin, wire.origin_slot))
        if link_id in fed:
            fed.remove(link_id)
        if wire.target in self._nodes:
            self._nodes[wire.target]["inputs"][wire.target_slot]["link"] = None
        elif wire.target == _OUTSIDE:
            self._graph["outputs"][wire.target_slot]["linkIds"].remove(link_id)

    def _fed_by(self, origin: Link) -> list[int]:
        """The mutable list in which an output names its links."""
        if origin.node == _INSIDE:
            return self._graph["inputs"][origin.slot].setdefault("linkIds", [])
        output = self._nodes[origin.node]["outputs"][origin.slot]
        output["links"] = output.get("links") or []
        return output["links"]

    def _type_of(self, origin: Link) -> str:
        outputs = self._nodes.get(origin.node, {}).get("outputs") or []
        if origin.slot < len(outputs):
            return outputs[origin.slot].get("type", "*")
        return next((wire.type for _, wire in self._from(origin)), "*")  # a subgraph's own input

    def _place(self, near: NodeId) -> list[float]:
        """The position of the replaced node, moved one step for every node added there."""
        x, y = _position(self._nodes[near].get("pos"))
        taken = {_position(content.get("pos")) for n, content in self._nodes.items() if n != near}
        while (x, y) in taken and x < FARTHEST:
            x += 360
        return [x, y]


def _position(pos: Any) -> tuple[float, float]:  # noqa: ANN401 - JSON
    """x and y; older files hold {"0": x, "1": y}."""
    if isinstance(pos, dict):
        pos = [pos.get("0", 0), pos.get("1", 0)]
    return (float(pos[0]), float(pos[1])) if pos else (0.0, 0.0)
