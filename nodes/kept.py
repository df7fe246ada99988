"""What nodes remember between runs of graphs, as long as the server runs.

No prompt can write to it, unlike the session folders, which other parts of a server may serve.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from ..encoding.unchanged import Facts, file_facts


class KeptResults:
    """Whether the results that ComfyUI's cache keeps of a node still hold.

    They hold as long as all the files behind them exist unchanged; a node may have several, from
    lists and from earlier graphs.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, dict[Path, Facts | None]]] = {}

    def token(self, node_id: str) -> str:
        """A text for the node's fingerprint: another one than before if its results are void."""
        token, files = self._kept.get(node_id, ("", {}))
        if not files or any(file_facts(file) != facts for file, facts in files.items()):
            token, files = uuid.uuid4().hex, {}  # never used before, in an outside cache neither
            self._kept[node_id] = token, files
        return token

    def keep(self, node_id: str, *files: Path) -> None:
        """The node's results hold as long as these files are as they are now, too; if any hold."""
        if node_id in self._kept:
            self._kept[node_id][1].update((file, file_facts(file)) for file in files)

    def void(self, node_id: str) -> None:
        """No result of the node holds."""
        self._kept.pop(node_id, None)


kept_results = KeptResults()
named_sounds: dict[Path, Path] = {}
"""By the folder of a session: the file that a node, not a prompt, named for its sound."""
