"""Peak memory of TLB-VFI on the CPU against what `predict_peak_memory` says.

    python benchmarks/model_memory.py 512x512 0.5

Measured is the peak RSS of this process over two pairs, less what it is after importing torch.
"""

import argparse
import json
import re
from pathlib import Path

import model_cpu
import torch


def peak_bytes() -> int:
    """Peak RSS of this process as Linux reports it; `ru_maxrss` is inherited from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", help="HEIGHTxWIDTH")
    parser.add_argument("flow_scale", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model_cpu.load_package()
    package = model_cpu.part("model")
    before = peak_bytes()
    height, width = map(int, arguments.size.split("x"))
    model_cpu.measure("savings", height, width, pairs=2, scale=arguments.flow_scale)
    geometry = package.plan_geometry(height, width, flow_scale=arguments.flow_scale)
    report = {
        "size": arguments.size,
        "flow_scale": arguments.flow_scale,
        "measured": peak_bytes() - before,
        "predicted": package.predict_peak_memory(geometry),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
