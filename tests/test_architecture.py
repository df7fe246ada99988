"""The layer rule, checked on the syntax tree so that it cannot be forgotten."""

import ast
import re
from pathlib import Path

import pytest

LAYERS = ("encoding", "tlbvfi", "nodes")  # each may import itself and those before it
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution", "nodes"}


def modules(root: Path, layer: str) -> list[Path]:
    return sorted((root / layer).rglob("*.py"))


def imports(root: Path, path: Path) -> list[tuple[str, bool]]:
    """(dotted name, is ours) of every import in a file; ours are resolved against the root."""
    found = []
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module or "", False))
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            # `from .. import x` may name a module or, of the package itself, its version
            parts = [""] if node.module else [f".{alias.name}" for alias in node.names]
            found += [(f"{'.'.join(base)}{part}".strip("."), True) for part in parts]
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_downward_only(root, layer):
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for path in modules(root, layer):
        for name, ours in imports(root, path):
            if ours and name != "__version__":
                assert name.split(".")[0] in allowed, f"{path.relative_to(root)} imports {name}"


@pytest.mark.parametrize("layer", ["encoding", "tlbvfi"])
def test_only_nodes_know_comfyui(root, layer):
    for path in modules(root, layer):
        for name, ours in imports(root, path):
            assert ours or name.split(".")[0] not in COMFYUI, f"{path} imports {name}"


def test_encoding_does_not_know_torch(root):
    for path in modules(root, "encoding"):
        for name, ours in imports(root, path):
            assert ours or name.split(".")[0] not in {"torch", "safetensors"}, path


def test_the_network_knows_neither_files_nor_video(root):
    for path in modules(root, "tlbvfi/model"):
        for name, ours in imports(root, path):
            assert not (ours and name.startswith("encoding")), f"{path} imports {name}"
            assert ours or name.split(".")[0] not in {"av", "cv2", "pathlib"}, f"{path}: {name}"


def texts(path: Path) -> list[str]:
    """Every string in a file; of f-strings, the literal parts."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    formatted = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    within = {id(part) for parts in formatted for part in parts}
    alone = [[node] for node in nodes if isinstance(node, ast.Constant) and id(node) not in within]
    return [
        "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
        for parts in formatted + alone
    ]


def test_texts_that_users_of_nodes_see_tell_which_options_are_of_the_command_line(root):
    for path in [*modules(root, "encoding"), root / "tlbvfi" / "job.py"]:
        for text in texts(path):
            assert not re.search(r"--[a-z]", text) or "command line" in text, f"{path}: {text}"
