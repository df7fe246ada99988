"""The project's aims for speed and memory, compared with measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..methods import MethodConfig
from .figures import Row
from .sizes import Size

FULL_HD, UHD, UHD_8K = Size(1920, 1080), Size(3840, 2160), Size(7680, 4320)
LOW = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """An upper or lower limit for a figure at one size on one type of device."""

    text: str
    size: Size
    value: Callable[[Row], float | None]
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    device: str = "cuda"
    precisions: tuple[str, ...] = ("float32", "tf32", *LOW)
    is_budget: bool = False
    """Whether it is a limit in GB, judged only if no more is allowed: spare memory gets used."""

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An aim and what was measured."""

    text: str
    size: str
    measured: float
    wanted: str
    unit: str
    passed: bool


def _faster(row: Row) -> float | None:
    return row.times_faster


def _psnr(row: Row) -> float | None:
    return row.baseline.psnr if row.baseline else None


def _peak_gb(row: Row) -> float | None:
    return row.model.peak_bytes / 1e9 if row.model else None


def _of_model(row: Row) -> float | None:
    return 100 * row.job.of_model_rate if row.job else None


def _sampler(row: Row) -> float | None:
    return row.model.stages_ms["sampler"] if row.model else None


def _busy(row: Row) -> float | None:
    return 100 * row.model.gpu_busy if row.model and row.model.gpu_busy is not None else None


def _peak(size: Size, gb: float, precisions: tuple[str, ...], device: str = "cuda") -> Aim:
    return Aim(
        text="peak memory",
        size=size,
        value=_peak_gb,
        unit="GB",
        at_most=gb,
        device=device,
        precisions=precisions,
        is_budget=True,
    )


AIMS = (
    Aim(text="faster than the baseline", size=FULL_HD, value=_faster, unit="x", at_least=10),
    Aim(text="last frame against float32", size=FULL_HD, value=_psnr, unit="dB", at_least=50),
    Aim(text="job at the model's own rate", size=FULL_HD, value=_of_model, unit="%", at_least=85),
    Aim(text="sampler", size=FULL_HD, value=_sampler, unit="ms", at_most=3),
    Aim(text="GPU busy", size=FULL_HD, value=_busy, unit="%", at_least=90),
    Aim(text="job at the model's own rate", size=UHD, value=_of_model, unit="%", at_least=85),
    _peak(UHD, 4, LOW),
    _peak(UHD, 7, ("float32",)),
    _peak(UHD_8K, 12, LOW),
    Aim(
        text="faster than the baseline",
        size=Size(512, 512),
        value=_faster,
        unit="x",
        at_least=2.2,
        device="cpu",
    ),
    _peak(Size(1536, 1024), 1.6, ("float32",), device="cpu"),
)

RUNS = {
    "cuda": (
        "--sizes 1080 --precision float16 --compile on --baseline",
        "--sizes 2160 --precision float16 --compile on",
        "--sizes 2160 --precision bfloat16 --vram 4G",
        "--sizes 2160 --vram 7G",
        "--sizes 4320 --precision bfloat16 --vram 12G",
    ),
    "cpu": (
        "--sizes 512x512 --pairs 8 --threads 1 --baseline",
        "--sizes 1536x1024 --memory 1.6G",
    ),
}
"""Options of `tlbvfi bench` that measure every aim, by device."""


def judge(rows: Iterable[Row], config: MethodConfig, device: str) -> list[Verdict]:
    """Verdicts on the aims that were measured."""
    return [verdict for row in rows for verdict in _of_row(row, config, device)]


def are_met(verdicts: Iterable[Verdict], device: str) -> bool:
    """Whether every aim for a device was measured, and was reached every time."""
    wanted = {(aim.text, str(aim.size), aim.limit) for aim in AIMS if aim.device == device}
    found = list(verdicts)
    measured = {(verdict.text, verdict.size, verdict.wanted) for verdict in found}
    return wanted <= measured and all(verdict.passed for verdict in found)


def _of_row(row: Row, config: MethodConfig, device: str) -> Iterator[Verdict]:
    for aim in AIMS:
        value = aim.value(row) if row.size == aim.size and _applies(aim, config, device) else None
        if value is not None:
            yield _verdict(aim, value)


def _applies(aim: Aim, config: MethodConfig, device: str) -> bool:
    if not device.startswith(aim.device) or config.precision not in aim.precisions:
        return False
    if not aim.is_budget or aim.at_most is None:
        return True
    return config.memory is not None and config.memory <= aim.at_most * 1e9


def _verdict(aim: Aim, value: float) -> Verdict:
    is_enough = aim.at_least is None or value >= aim.at_least
    is_little = aim.at_most is None or value <= aim.at_most
    return Verdict(
        text=aim.text,
        size=str(aim.size),
        measured=value,
        wanted=aim.limit,
        unit=aim.unit,
        passed=is_enough and is_little,
    )
