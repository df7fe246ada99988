"""A report as tables for people and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from .aims import Verdict
from .figures import STAGES, Row
from .report import Bench

NOTHING = "-"


def heading(bench: Bench) -> list[str]:
    """Lines that say what is measured, on what, with which weights."""
    machine, method = bench.machine, bench.task.method
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    peaks = ", ".join(f"{name} {peak:.3g}" for name, peak in machine["matmul_tflops"].items())
    weights = (
        "stand-in weights (speed and memory do not depend on their values)"
        if bench.has_stand_in
        else str(method.model)
    )
    budget = "" if method.memory is None else f", within {_gb(method.memory)}"
    return [
        f"TLB-VFI on {device}; torch {machine['torch']}",
        f"{method.precision}, {method.steps} steps, flow scale {method.flow_scale:g}, "
        f"padding {method.padding}{budget}; {weights}",
        f"largest matrix product, TFLOP/s: {peaks}",
    ]


def tables(bench: Bench, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    """All results, one table below the other."""
    memory = "VRAM" if "gpu" in bench.machine else "RSS"
    parts = [
        _rates(bench, rows, memory),
        _stages(rows),
        _jobs(rows, memory),
        _baselines(rows, memory),
        [f"{row.size}: {name}: {text}" for row in rows for name, text in row.problems.items()],
        _verdicts(verdicts),
    ]
    return [line for part in parts if part for line in ("", *part)]


def _rates(bench: Bench, rows: Iterable[Row], memory: str) -> list[str]:
    peak = bench.machine["matmul_tflops"][bench.task.method.precision]
    lines = [
        (
            str(row.size),
            f"{row.model.ms:.1f}",
            f"{row.model.frames_per_second:.3g}",
            _gb(row.model.peak_bytes),
            f"{row.model.tflops:.3g}",
            _percent(row.model.tflops / peak),
        )
        for row in rows
        if row.model
    ]
    head = ("model", "ms/mid frame", "mid frames/s", f"peak {memory}", "TFLOP/s", "of matmul peak")
    return _table(head, lines)


def _stages(rows: Iterable[Row]) -> list[str]:
    lines = [
        (
            str(row.size),
            *(_percent(row.model.shares[stage]) for stage in (*STAGES, "other")),
            f"{row.model.stages_ms['sampler']:.1f}",
            NOTHING if row.model.gpu_busy is None else _percent(row.model.gpu_busy),
        )
        for row in rows
        if row.model
    ]
    return _table(("stages", *STAGES, "other", "sampler ms", "GPU busy"), lines)


def _jobs(rows: Iterable[Row], memory: str) -> list[str]:
    lines = [
        (
            str(row.size),
            f"{row.job.frames_per_second:.3g}",
            _percent(row.job.of_model_rate),
            row.job.limit,
            f"{row.job.decode_ms:.1f}",
            f"{row.job.model_ms:.1f}",
            f"{row.job.encode_ms:.1f}",
            row.job.encoder,
            _gb(row.job.peak_bytes),
        )
        for row in rows
        if row.job
    ]
    head = (
        *("file to file", "frames/s", "of model's rate", "limit"),
        *("decode ms", "model ms", "encode ms", "encoder", f"peak {memory}"),
    )
    return _table(head, lines)


def _baselines(rows: Iterable[Row], memory: str) -> list[str]:
    lines = [
        (
            str(row.size),
            f"{row.baseline.ms:.1f}",
            f"{row.times_faster:.2f}",
            f"{row.baseline.cpu_ms / row.model.cpu_ms:.2f}",
            _gb(row.baseline.peak_bytes),
            f"{row.baseline.largest_difference:.1e}",
            "same" if row.baseline.psnr is None else f"{row.baseline.psnr:.1f} dB",
            _or_nothing(row.baseline.ms_torch_defaults),
        )
        for row in rows
        if row.model and row.baseline
    ]
    head = (
        *("baseline", "ms/mid frame", "times faster", "less CPU time", f"peak {memory}"),
        *("largest difference", "PSNR", "with TF32, ms"),
    )
    return _table(head, lines)


def _verdicts(verdicts: Iterable[Verdict]) -> list[str]:
    lines = [
        (
            v.text,
            v.size,
            f"{v.measured:.3g} {v.unit}",
            f"{v.wanted} {v.unit}",
            "pass" if v.passed else "FAIL",
        )
        for v in verdicts
    ]
    return _table(("aim", "size", "measured", "wanted", ""), lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as needed, the first left-aligned; empty without lines."""
    if not lines:
        return []
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return [
        "  ".join(
            word.ljust(width) if i == 0 else word.rjust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *lines)
    ]


def as_json(
    bench: Bench, rows: Iterable[Row], verdicts: Iterable[Verdict], command: Sequence[str]
) -> dict[str, Any]:
    """The whole report in JSON types."""
    model = None if bench.has_stand_in else str(bench.task.method.model)
    return {
        "command": ["tlbvfi", *command],
        "machine": bench.machine,
        "method": {**asdict(bench.task.method), "model": model},
        "stand_in_weights": bench.has_stand_in,
        "rows": [_row_as_json(row) for row in rows],
        "aims": [asdict(verdict) for verdict in verdicts],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    document = {**asdict(row), "size": str(row.size)}
    if row.model:
        document["model"] |= {
            "frames_per_second": row.model.frames_per_second,
            "tflops": row.model.tflops,
            "shares": row.model.shares,
        }
    if row.job:
        document["job"] |= {
            "frames_per_second": row.job.frames_per_second,
            "of_model_rate": row.job.of_model_rate,
            "limit": row.job.limit,
        }
    if row.baseline:
        document["times_faster"] = row.times_faster
    return document


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _or_nothing(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"
