"""The plain implementation that `--baseline` compares with: only in a checkout, not packaged."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ..errors import SettingsError

FILE = Path(__file__).parents[2] / "benchmarks" / "model_baseline.py"


def require_plain(file: Path = FILE) -> None:
    """Raise unless this is a checkout.

    Raises:
        SettingsError: it is not.
    """
    if not file.is_file():
        raise SettingsError(
            f"--baseline needs {file}, which only a checkout of the repository has: install the "
            "project from one with `pip install -e .`, or measure without --baseline and --aims."
        )


def load_plain() -> Any:  # noqa: ANN401 - a class that only the file knows
    """The class `Baseline`, which takes a model and computes one mid frame when called.

    Raises:
        SettingsError: this is not a checkout.
    """
    require_plain()
    spec = spec_from_file_location("tlbvfi_model_baseline", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Baseline
