"""The three ways to load the package: ComfyUI's loader, an installed wheel, pytest."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["my.dir-1.0", "custom_nodes/ComfyUI-TLBVFI", "nodes_"])
def test_the_checkout_loads_under_any_name(load_as, name):
    alias = name.replace(".", "_x_").replace("/", "_")
    package = load_as(alias)
    assert importlib.import_module(f"{alias}.encoding")
    assert importlib.import_module(f"{alias}.tlbvfi")
    assert package.__version__


def test_version_and_shipped_packages_agree_with_the_folders(root: Path):
    pyproject = (root / "pyproject.toml").read_text()
    package = importlib.import_module("comfyui_tlbvfi")
    assert f'version = "{package.__version__}"' in pyproject
    listed = set(re.findall(r'^    "(comfyui_tlbvfi[\w.]*)",$', pyproject, re.MULTILINE))
    found = {
        ".".join(["comfyui_tlbvfi", *init.parent.relative_to(root).parts])
        for layer in (".", "encoding", "nodes", "tlbvfi")
        for init in (
            [root / "__init__.py"] if layer == "." else (root / layer).rglob("__init__.py")
        )
    }
    assert listed == found


def test_the_package_ships_its_types_and_what_comfyui_shows(root: Path):
    pyproject = (root / "pyproject.toml").read_text()
    shipped = re.findall(
        r'"([^"]+)"', re.findall(r"^comfyui_tlbvfi = \[(.+)\]$", pyproject, re.M)[0]
    )
    assert {"py.typed", "web/**", "workflows/**", "locales/**"} == set(shipped)
    assert all(any(root.glob(pattern)) for pattern in shipped)


def test_what_comfyui_installs_is_what_the_package_asks_for(root: Path):
    asked = re.findall(r'^    "(.+)",$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    lines = (root / "requirements.txt").read_text().splitlines()
    installed = [line for line in lines if not line.startswith("#")]
    assert set(installed) <= set(asked)
    assert any(line.startswith("av>=") for line in installed)  # ComfyUI itself accepts PyAV 16


def test_a_pyav_that_is_too_old_is_told_before_anything_runs(load_as, monkeypatch):
    monkeypatch.setattr("av.__version__", "16.1.0")
    load_as("beside_an_old_pyav")
    with pytest.raises(
        ImportError, match=r"PyAV 16.1.0 is installed and 17.1 or newer is needed: "
    ):
        importlib.import_module("beside_an_old_pyav.tlbvfi.job")


def test_importing_the_package_imports_nothing_heavy(root: Path):
    code = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('p', {str(root / '__init__.py')!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "assert not {'torch', 'av', 'cv2', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
