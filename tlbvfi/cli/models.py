"""`tlbvfi download` and `tlbvfi convert`: weights files, only when asked for."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from ..models import SOURCES
from .arguments import Commands, named_path
from .show import say


def add_parsers(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    download = subparsers.add_parser(
        "download", parents=[shared], help="fetch the weights of a method from Hugging Face"
    )
    download.add_argument("method", nargs="?", choices=tuple(SOURCES), default="tlbvfi")
    download.add_argument(
        "--folder",
        metavar="DIR",
        help="default: $TLBVFI_MODELS, else the user's cache folder, where the file is found without "
        "--model",
    )
    download.add_argument("--mirror", metavar="URL", help="a mirror of huggingface.co")
    download.set_defaults(run=run_download)
    convert = subparsers.add_parser(
        "convert", parents=[shared], help="shrink a TLB-VFI checkpoint to what inference needs"
    )
    convert.add_argument("input", metavar="IN", type=named_path)
    convert.add_argument("output", metavar="OUT.safetensors", type=named_path)
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="type of the stored weights (default float32; others are smaller but change the frames)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace OUT.safetensors")
    convert.set_defaults(run=run_convert)


def run_download(arguments: argparse.Namespace) -> int:
    """Download a weights file, or resume a download that broke off."""
    from ..download import download
    from ..models import HUGGING_FACE, download_folder

    with tqdm(unit="B", unit_scale=True, file=sys.stderr, disable=arguments.json) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path = download(
            arguments.method,
            download_folder(arguments.folder),
            on_progress=show,
            base_url=arguments.mirror or HUGGING_FACE,
        )
    _tell(path, arguments.json)
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Write a small safetensors file from a training checkpoint."""
    import torch

    from ..checkpoint import convert

    convert(
        arguments.input,
        arguments.output,
        dtype=getattr(torch, arguments.dtype),
        overwrite=arguments.overwrite,
    )
    _tell(arguments.output, arguments.json)
    return 0


def _tell(path: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": str(path), "bytes": path.stat().st_size}))
    else:
        say(str(path))
