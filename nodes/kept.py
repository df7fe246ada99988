"""What nodes remember between runs of graphs, as long as the server runs.

No prompt can write to it, unlike the session folders, which other parts of a server may serve.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

from ..encoding.unchanged import Facts, file_facts

MOST_KEPT = 1000
"""Nodes with results, and files of a node: each file is looked at in every run of its node."""


class KeptResults:
    """Whether the results that ComfyUI's cache keeps of a node still hold.

    They hold as long as all the files behind them exist unchanged; a node may have several, from
    lists and from earlier graphs. With more than `MOST_KEPT` files they are void, and so are those of
    the node that has been known longest, with more nodes.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, dict[Path, Facts | None]]] = {}

    def token(self, node_id: str) -> str:
        """A text for the node's fingerprint: another one than before if its results are void."""
        token, files = self._kept.get(node_id, ("", {}))
        is_unknown = not files or len(files) > MOST_KEPT
        if is_unknown or any(file_facts(file) != facts for file, facts in files.items()):
            token, files = uuid.uuid4().hex, {}  # never used before, in an outside cache neither
            self._kept[node_id] = token, files
        if len(self._kept) > MOST_KEPT:
            self.void(next(iter(self._kept)))
        return token

    def keep(self, node_id: str, *files: Path) -> None:
        """The node's results hold as long as these files are as they are now, too; if any hold."""
        if node_id in self._kept:
            self._kept[node_id][1].update((file, file_facts(file)) for file in files)

    def void(self, node_id: str) -> None:
        """No result of the node holds."""
        self._kept.pop(node_id, None)


class SessionSounds:
    """The file that a node, not a prompt, named for the sound of each session that has chunks.

    It may be a copy of what exists only in memory, which is removed once no session needs it.
    """

    def __init__(self) -> None:
        self._files: dict[Path, Path] = {}
        self._copies: set[Path] = set()

    def keep(self, session: Path, file: Path, *, is_copy: bool) -> None:
        """The chunks in the folder `session` go with the sound of `file`."""
        self._files[session] = file.absolute()
        if is_copy:
            self._copies.add(file.absolute())

    def of(self, session: Path) -> Path | None:
        """The file for the session in this folder, if a node named one."""
        return self._files.get(session)

    def forget(self, session: Path) -> None:
        """The session in this folder has no chunks any more."""
        file = self._files.pop(session, None)
        if file in self._copies:
            self.discard(file)

    def discard(self, copy: Path) -> None:
        """Remove a copy, unless the chunks of a session need it."""
        if copy.absolute() not in self._files.values():
            self._copies.discard(copy.absolute())
            with suppress(OSError):  # Windows: another program has it open
                copy.unlink()


kept_results = KeptResults()
session_sounds = SessionSounds()
