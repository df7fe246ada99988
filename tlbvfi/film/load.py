"""From a FILM weights file to a network that is ready to call."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, ModelMissingError, SettingsError
from ..weights import misfits
from .layers import CHANNELS_LAST
from .network import FilmNet


def load_film(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FilmNet:
    """FILM with the weights of a `film_net_*.safetensors` file, ready to call.

    `dtype`: float32, or float16 (half the memory; warps stay float32), whatever the file holds.
    float16 is for GPUs: a CPU without half-precision arithmetic is several times slower with it.

    Raises:
        ModelMissingError: there is no such file.
        CheckpointError: the file is not safetensors, is cut off, or is not FILM.
        SettingsError: another dtype.
    """
    if dtype not in (torch.float32, torch.float16):
        raise SettingsError(f"FILM runs in float32 or float16, got {dtype}: choose one of them.")
    weights = _read_weights(Path(path))
    with torch.device("meta"):
        film = FilmNet(dtype=dtype)
    if differing := misfits(weights, film.state_dict()):
        raise CheckpointError(
            f"{Path(path).name} does not hold the FILM network ({differing}): "
            "choose film_net_fp16.safetensors or film_net_fp32.safetensors."
        )
    placed = {key: _placed(tensor, dtype, device) for key, tensor in weights.items()}
    film.load_state_dict(placed, assign=True)
    return film.eval().requires_grad_(False)


def weights_hash(film: FilmNet) -> str:
    """SHA-256 (hex) over the names and numbers of the weights, as float32.

    The same for a float16 and a float32 file that hold the same numbers.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(film.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelMissingError(f"There is no FILM model at {path}: check the path.")
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
        raise CheckpointError(f"{path.name} {_unreadable(head)} ({error}).") from error


def _unreadable(head: bytes) -> str:
    """What a file that begins with `head` is instead of safetensors, and what to do."""
    if head.startswith(b"<"):
        return "is a web page, not weights: download the file itself, not the page about it"
    if head.startswith((b"PK", b"\x80")):
        return "is a PyTorch archive, which could hold code: use film_net_fp16.safetensors"
    return "is not a complete safetensors file: download it again"


def _placed(tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    layout = CHANNELS_LAST if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device=device, dtype=dtype, memory_format=layout)
