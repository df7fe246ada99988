"""Loads this checkout as the package `comfyui_tlbvfi`, whatever its folder is called."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_checkout(name: str) -> ModuleType:
    """This checkout as a package called `name`, the way ComfyUI loads custom nodes."""
    spec = spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load_checkout("comfyui_tlbvfi")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def load_as():
    """Loader of this checkout under another package name."""
    return load_checkout
