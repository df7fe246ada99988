"""Questions about the prompt a node runs in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Prompt = Mapping[str, Any]  # JSON: node id -> {"class_type", "inputs"}


def running_prompt(dynprompt: Any) -> Prompt:  # noqa: ANN401 - ComfyUI's untyped DynamicPrompt
    """The prompt as it runs: with the copies of nodes that loops have added since it was queued."""
    return {node_id: dynprompt.get_node(node_id) for node_id in dynprompt.all_node_ids()}


def is_linked(prompt: Prompt, node_id: str, output: int) -> bool:
    """Whether any node reads this output."""
    return any(link == [node_id, output] for link, _ in _links(prompt))


def leads_to(prompt: Prompt, node_id: str, output: int, class_type: str) -> bool:
    """Whether a node of this class depends on this output, directly or through others."""
    reached, found = set(), {reader for link, reader in _links(prompt) if link == [node_id, output]}
    while found - reached:
        reached |= found
        found = {reader for (source, _), reader in _links(prompt) if source in reached}
    return any(prompt[reader]["class_type"] == class_type for reader in reached - {node_id})


def _links(prompt: Prompt) -> Iterator[tuple[list[Any], str]]:
    """([node, output], reader) of every link."""
    for reader, node in prompt.items():
        for value in node["inputs"].values():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
                yield value, reader
