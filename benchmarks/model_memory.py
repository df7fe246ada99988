"""Memory and time of TLB-VFI under memory budgets, compared with whole maps.

    python benchmarks/model_memory.py [1.2G 1.6G 2G 4G] [--size 1536x1024] [--threads 2]

Every budget runs in its own process, because a peak never goes down; on a CPU they take turns, frame by
frame, and all are in memory. Whole maps, without bands, come first. Stand-in weights, a generated clip held in memory. *predicted* is the memory taken before the
first frame plus the plan's peak; *difference* is the largest between the last frame and that of
whole maps, in [0, 1]; *CPU s* is also per mid frame, all threads together.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from comfyui_tlbvfi.tlbvfi.allocator import set_up_memory, use_expandable_segments
from comfyui_tlbvfi.tlbvfi.bench.cuda import forget_peak, held_bytes, peak_bytes
from comfyui_tlbvfi.tlbvfi.bench.machine import cpu_name
from comfyui_tlbvfi.tlbvfi.bench.pictures import as_frames, moving_picture
from comfyui_tlbvfi.tlbvfi.bench.rate import FRAMES, mid_frames, rest_on, timed, warm_up_pairs
from comfyui_tlbvfi.tlbvfi.bench.sizes import parse_sizes
from comfyui_tlbvfi.tlbvfi.bench.stand_in import write_stand_in
from comfyui_tlbvfi.tlbvfi.bench.turns import run_in_turns
from comfyui_tlbvfi.tlbvfi.cli.arguments import parse_size
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod, open_tlbvfi
from comfyui_tlbvfi.tlbvfi.model import Geometry, MemoryPlan
from comfyui_tlbvfi.tlbvfi.model.memory import LIBRARIES
from safetensors.torch import load_file, save_file

BUDGETS = ("1.2G", "1.6G", "2G", "4G")
WHOLE = "whole maps"
SEPARATOR = "  "


class WholeMaps(TlbvfiMethod):
    """Every map computed in one step and stored."""

    def plan(self, geometry: Geometry, pairs: int = 1) -> MemoryPlan:
        """The plan without bands, whatever the memory."""
        return MemoryPlan(gives_back=False)


def main() -> None:
    """Measure all budgets, or one of them in a child process."""
    arguments = parse_arguments()
    if arguments.child:
        folder, budget = arguments.child
        print(json.dumps(measure(Path(folder), budget, arguments)))
        return
    print(f"{arguments.size}, {cpu_name()}, {arguments.threads} threads, torch {torch.__version__}")
    print("budget       predicted   peak      s/mid frame   ratio   CPU s   difference   codes")
    with TemporaryDirectory(prefix="tlbvfi-memory-") as name:
        folder = Path(name)
        write_stand_in(folder / "weights.safetensors")
        budgets = (WHOLE, *arguments.budgets)
        results = run_in_turns(*(child(budget, folder) for budget in budgets))
        for budget, found in zip(budgets, results, strict=False):
            if "problem" in found:
                raise SystemExit(f"{budget}: {found['problem']}")
            print(row(budget, found, results[0], folder))


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script; a child gets the same, and its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("budgets", nargs="*", default=BUDGETS, metavar="BUDGET")
    parser.add_argument("--size", default="1536x1024", help="WIDTHxHEIGHT")
    parser.add_argument("--flow-scale", type=float, default=0.5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3, help="mid frames the median is taken of")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # folder, budget
    return parser.parse_args()


def child(budget: str, folder: Path) -> list[str]:
    """The command of the process for one budget."""
    return [sys.executable, __file__, *sys.argv[1:], "--child", str(folder), budget]


def row(budget: str, found: dict[str, Any], reference: dict[str, Any], folder: Path) -> str:
    """A line of the table."""
    ours, theirs = (load_file(folder / name) for name in (found["file"], reference["file"]))
    predicted = f"{found['predicted'] / 1e9:.2f} GB" if found["predicted"] else "-"
    off = (ours["frame"] - theirs["frame"]).abs().max().item()
    codes = "equal" if torch.equal(ours["codes"], theirs["codes"]) else "differ"
    return SEPARATOR.join(
        (
            f"{budget:10}",
            f"{predicted:>10}",
            f"{found['peak'] / 1e9:5.2f} GB",
            f"{found['seconds']:11.1f}",
            f"{found['seconds'] / reference['seconds']:6.2f}",
            f"{found['cpu_seconds']:6.1f}",
            f"{off:11.1e}",
            f"{codes:>6}",
        )
    )


@torch.no_grad()
def measure(folder: Path, budget: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Predicted and real peak and seconds per mid frame of one budget; saves its last frame."""
    torch.set_num_threads(arguments.threads)
    (size,) = parse_sizes(arguments.size)
    config = MethodConfig(
        flow_scale=arguments.flow_scale,
        precision=arguments.precision,
        device=arguments.device,
        memory=None if budget == WHOLE else parse_size(budget),
    )
    use_expandable_segments()
    method = open_tlbvfi(folder / "weights.safetensors", config)
    set_up_memory(config.memory, method, size.height, size.width)
    if budget == WHOLE:
        method = WholeMaps(method.model, method.options)
    device, quantizer = method.device, method.model.vqgan.quantize
    codes: list[torch.Tensor] = []
    quantizer.register_forward_pre_hook(
        lambda _, clips: codes.__setitem__(slice(None), [quantizer.codes(clips[0])])
    )
    taken = held_bytes(device) + LIBRARIES.get(device.type, 0)
    planned = method.memory_needed(size.height, size.width)
    with closing(mid_frames(method, as_frames(moving_picture(size, FRAMES)))) as frames:
        forget_peak(device)
        warm_up, rest = warm_up_pairs(device), rest_on(device)
        clock, last = timed(frames, warm_up, arguments.pairs, before_each=rest)
        peak = peak_bytes(device)
    file = f"{budget}.safetensors"
    save_file({"frame": last.contiguous(), "codes": codes[0].cpu()}, folder / file)
    return {
        "predicted": taken + planned if planned else None,
        "peak": peak,
        "seconds": clock.ms / 1e3,
        "cpu_seconds": clock.cpu_ms / 1e3,
        "file": file,
    }


if __name__ == "__main__":
    main()
