"""The programs in benchmarks/ run by hand only, so that a renamed function would go unnoticed."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_from_the_package_exists(program):
    for node in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("comfyui_tlbvfi"):
            package = import_module(node.module)
            for name in node.names:
                if not hasattr(package, name.name):
                    import_module(f"{node.module}.{name.name}")  # fails if it is no module either
