"""Time, memory and FLOPs per mid frame on the CPU, beside a plain implementation in one run.

    python benchmarks/model_cpu.py --size 512x512 --pairs 8 --threads 1

Weights are stand-ins, which cost what trained ones do. Memory is the peak RSS of a process of its
own for each implementation, interpreter, torch and weights included.
"""

# What is reached by name has no type here; B, C, H, W are the field's names.
# ruff: noqa: ANN401

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import model_weights
import torch
from model_baseline import Baseline
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "comfyui_tlbvfi"
STEPS = 10
HALFWAY = Fraction(1, 2)


def load_package() -> None:
    """This checkout as `comfyui_tlbvfi`."""
    spec = spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[PACKAGE] = module_from_spec(spec)
    spec.loader.exec_module(module)


def part(name: str) -> Any:
    return import_module(f"{PACKAGE}.tlbvfi.{name}")


def stand_in_model(layout: torch.memory_format) -> Any:
    with torch.device("meta"):
        model = part("model").TLBVFI()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = {
        name: t.contiguous(memory_format=layout) if t.ndim == 4 else t
        for name, t in model_weights.stand_in_weights(shapes).items()
    }
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def moving_picture(count: int, height: int, width: int) -> list[Tensor]:
    """A smooth random picture that moves 3 pixels a frame: [3, H, W] in [0, 1]."""
    coarse = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    size = (height, width + 3 * count)
    wide = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0]
    return [wide[:, :, 3 * n : 3 * n + width].contiguous() for n in range(count)]


def savings_runner(model: Any, frames: list[Tensor], scale: float) -> Callable[[int], Tensor]:
    """The pipeline's way: features of a frame serve both its pairs."""
    options = part("model").SamplingOptions(flow_scale=scale, steps=STEPS)
    method = part("methods.tlbvfi").TlbvfiMethod(model, options)
    kept = {0: method.prepare(frames[0])}

    def run(n: int) -> Tensor:
        first = kept.pop(n)
        kept[n + 1] = method.prepare(frames[n + 1])
        (frame,) = method.between(first, kept[n + 1], [HALFWAY], part("method").PairKey(0, n))
        return frame

    return run


def baseline_runner(model: Any, frames: list[Tensor], scale: float) -> Callable[[int], Tensor]:
    package = part("model")
    for name in ("autoencoder", "bridge", "flow", "layers", "tlbvfi"):
        setattr(package, name, part(f"model.{name}"))
    baseline = Baseline(package, model)
    geometry = package.plan_geometry(*frames[0].shape[-2:], flow_scale=scale)
    key = part("method").PairKey

    def run(n: int) -> Tensor:
        seed = key(0, n).node_seed(HALFWAY)
        noise = part("model.sampling").draw_noise(seed, geometry, STEPS, torch.device("cpu"))
        pair = (frame[None] for frame in frames[n : n + 2])
        return baseline(*pair, geometry, STEPS, noise)[0]

    return run


RUNNERS = {"savings": savings_runner, "baseline": baseline_runner}
LAYOUTS = {"savings": torch.channels_last, "baseline": torch.contiguous_format}


def measure(
    name: str, height: int, width: int, pairs: int, scale: float
) -> tuple[dict[str, Any], Tensor]:
    """One implementation over a sequence, in this process: what it took, and the last frame."""
    frames = moving_picture(pairs + 1, height, width)
    run = RUNNERS[name](stand_in_model(LAYOUTS[name]), frames, scale)
    seconds, cpu_seconds = [], []
    result = torch.empty(0)
    for n in range(pairs):
        began, cpu_began = time.perf_counter(), time.process_time()
        result = run(n)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    took = {
        "seconds": sorted(seconds)[len(seconds) // 2],
        "cpu_seconds": sorted(cpu_seconds)[len(cpu_seconds) // 2],
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    return took, result


def count_gflop(name: str, height: int, width: int, scale: float) -> float:
    """GFLOP of the second pair of a sequence, as `torch.utils.flop_counter` counts."""
    run = RUNNERS[name](stand_in_model(LAYOUTS[name]), moving_picture(3, height, width), scale)
    run(0)
    with FlopCounterMode(display=False) as counter:
        run(1)
    return counter.get_total_flops() / 1e9


def measure_apart(name: str, arguments: list[str], folder: Path) -> tuple[dict[str, Any], Tensor]:
    """`measure` in a process of its own, whose peak memory is then its own as well."""
    saved = folder / f"{name}.pt"
    command = [sys.executable, __file__, *arguments, "--only", name, "--save", str(saved)]
    took = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return took, torch.load(saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flow-scale", type=float, default=0.5)
    parser.add_argument("--only", choices=sorted(RUNNERS), help="measure one, print JSON")
    parser.add_argument("--save", type=Path, help="with --only: where its last frame goes")
    parser.add_argument("--count", action="store_true", help="count FLOPs as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load_package()
    height, width = map(int, arguments.size.split("x"))
    if arguments.only:
        took, result = measure(arguments.only, height, width, arguments.pairs, arguments.flow_scale)
        torch.save(result, arguments.save)
        print(json.dumps(took))
        return
    with TemporaryDirectory() as folder:
        found = {name: measure_apart(name, sys.argv[1:], Path(folder)) for name in RUNNERS}
    rows = {name: row for name, (row, _) in found.items()}
    if arguments.count:
        for name, row in rows.items():
            row["gflop"] = count_gflop(name, height, width, arguments.flow_scale)
    report = {
        "size": arguments.size,
        "threads": arguments.threads,
        "pairs": arguments.pairs,
        **rows,
        "times_faster": rows["baseline"]["seconds"] / rows["savings"]["seconds"],
        "times_less_cpu": rows["baseline"]["cpu_seconds"] / rows["savings"]["cpu_seconds"],
        "largest_difference": (found["savings"][1] - found["baseline"][1]).abs().max().item(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
