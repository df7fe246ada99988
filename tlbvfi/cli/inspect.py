"""`tlbvfi probe` and `tlbvfi doctor`: what a file is, and what this machine can do."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

from ...encoding.durable import size_in_words
from ...encoding.text import printable
from .arguments import Commands

PACKAGES = ("torch", "av", "numpy", "opencv-python", "safetensors", "filelock", "tqdm")
TWINS = {
    "opencv-python": (
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    )
}
"""Packages that hold the same module as well."""


def add_parsers(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    probe = subparsers.add_parser("probe", parents=[shared], help="describe a video")
    probe.add_argument("input", metavar="INPUT", help="video file, or folder of images")
    probe.add_argument("--input-fps", metavar="RATE", help="rate of a folder of images")
    probe.add_argument("--count", action="store_true", help="count frames exactly (reads the file)")
    probe.set_defaults(run=run_probe)
    doctor = subparsers.add_parser(
        "doctor", parents=[shared], help="report encoders, GPU, models, disk and versions"
    )
    doctor.set_defaults(run=run_doctor)


def run_probe(arguments: argparse.Namespace) -> int:
    """Print the facts of a file, or of a folder of images."""
    from ...encoding.probe import probe
    from ...encoding.source import open_source
    from ..timeline import parse_rate

    if Path(arguments.input).is_dir() or arguments.input_fps:  # which is for sources without a rate
        rate = parse_rate(arguments.input_fps) if arguments.input_fps else None
        with open_source(arguments.input, input_rate=rate) as source:
            facts = asdict(source.info)
    else:
        facts = asdict(probe(arguments.input, count=arguments.count))
    if arguments.json:
        print(json.dumps(facts, default=str))
    else:
        for name, value in facts.items():
            words = printable(_in_words(value)).replace("\n", "\\n")
            print(f"{name.replace('_', ' '):20} {words}")
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print what works here, and what does not and why."""
    report = {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "gpu": _gpus(),
        "encoders": _encoders(),
        "models": _models(),
        "disk": f"{size_in_words(shutil.disk_usage(Path.cwd()).free)} free here",
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, text in value.items():
                print(f"  {key:16} {text}")
        else:
            print(f"{name}: {value}")
    return 0


def _version(package: str) -> str:
    """The version of a package, or those of its twins, by name."""
    own = _installed(package)
    others = [f"{twin} {_installed(twin)}" for twin in TWINS.get(package, ()) if _installed(twin)]
    return ", ".join(filter(None, [own, *others])) or "missing"


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> dict[str, str]:
    import torch

    if not torch.cuda.is_available():
        reason = "" if torch.version.cuda or torch.version.hip else ", as this PyTorch has no CUDA"
        return {"cuda": f"not available{reason}: networks run on the CPU"}
    return {f"cuda:{i}": _gpu(i) for i in range(torch.cuda.device_count())}


def _gpu(index: int) -> str:
    import torch

    from ..device import choose_device
    from ..errors import InterpolationError
    from ..model.kernels import has_triton

    memory = size_in_words(torch.cuda.get_device_properties(index).total_memory)
    try:
        device = choose_device(f"cuda:{index}")
        state = f"{'with' if has_triton(device) else 'without'} Triton"
    except InterpolationError as error:
        state = str(error)
    return f"{torch.cuda.get_device_name(index)}, {memory}, {state}"


def _encoders() -> dict[str, str]:
    from ...encoding.profiles import available_encoders

    return {
        each.profile: each.problem or f"works ({each.encoder})" for each in available_encoders()
    }


def _models() -> dict[str, str]:
    from ..errors import ModelMissingError
    from ..methods import METHODS, WITHOUT_WEIGHTS
    from ..models import find_model

    found = {}
    for method in METHODS:
        if method in WITHOUT_WEIGHTS:
            found[method] = "needs none"
            continue
        try:
            found[method] = str(find_model(method))
        except ModelMissingError as error:
            found[method] = str(error)
    return found


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "-"
    if isinstance(value, list | tuple):
        return "; ".join(map(_in_words, value)) or "-"
    return "-" if value is None else str(value)
