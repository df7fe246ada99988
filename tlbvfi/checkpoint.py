"""TLB-VFI weights: loading, hashing and converting a checkpoint file.

The official `vimeo_unet.pth` is a dict whose `model` holds the weights, most of them twice, beside
gigabytes of training state. It is mapped into memory and read weights-only: code in a file is never
run, and only what inference needs is copied.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..encoding.durable import new_file
from ..encoding.errors import OutputError
from .errors import CheckpointError, ModelMissingError, SettingsError
from .model import COMPUTE_DTYPES, TLBVFI
from .weights import misfits

log = logging.getLogger("tlbvfi.checkpoint")

Format = Literal["safetensors", "zip"]

DUPLICATES = "cond_stage_model."
"""The official file holds the autoencoder a second time under this prefix."""

UNUSED = re.compile(
    r"(m_t|variance_t|m_tminus|variance_tminus|variance_t_tminus|posterior_variance_t"
    r"|.*\.num_batches_tracked"
    r"|vqgan\.decoder\.up\.\d\.cross_attn\.out_conv\..*"
    r"|vqgan\.encoder\.down\.[023]\.block\.0\.nin_shortcut\..*"
    r"|vqgan\.decoder\.up\.[124]\.block\.0\.nin_shortcut\..*)"
)
"""Tensors of the official file that inference does not need: the schedule, which is arithmetic,
counters of training, and layers that the reference creates but never runs."""

DAMAGE = (
    *(zipfile.BadZipFile, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError),
    *(ArithmeticError, AttributeError, AssertionError, struct.error),
)
"""Errors that reading a damaged archive raises."""

DIRECTORY_END = struct.Struct("<4s4H2IH")
ENDS_64 = struct.Struct("<4sQ2H2I4Q4sIQI")
PLACE_64 = 20
"""The last records of a zip archive: two of 64 bits, if there are any, the second of which has 20 bytes
and tells the place of the first, then the end itself (APPNOTE.TXT)."""
LONGEST_MEMBER = 511
"""Bytes of a name in an archive that PyTorch reads; it cuts off the rest."""

OTHER_NETWORKS = (
    ("FILM", "extract.extract_sublevels."),
    ("RIFE", "block0.conv0."),
    ("RIFE", "module.block0."),
    ("Stable Diffusion", "model.diffusion_model."),
    ("a LoRA", "lora_"),
)
"""(name, prefix of its tensors' names) of networks easily mistaken for TLB-VFI."""


def _bare(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (layer,), {"reset_parameters": lambda self: None})


class Bare:
    """The layers of `torch.nn` without random initialization, as weights replace it at once.

    On the meta device, initialization makes PyTorch load its compiler: 75 MB and a second.
    """

    Conv1d, Conv2d, Conv3d = _bare(nn.Conv1d), _bare(nn.Conv2d), _bare(nn.Conv3d)
    ConvTranspose2d, Linear = _bare(nn.ConvTranspose2d), _bare(nn.Linear)
    Embedding = _bare(nn.Embedding)
    GroupNorm, LayerNorm = _bare(nn.GroupNorm), _bare(nn.LayerNorm)


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    operations: Any = None,  # noqa: ANN401 - a namespace like torch.nn
) -> TLBVFI:
    """TLB-VFI with the weights of a `.pth` or `.safetensors` file, ready to call.

    `dtype`: float32 equals the reference. float16 and bfloat16 are for GPUs: the decoder computes
    in that dtype; everything before the quantizer and the flow stay in float32.
    `operations`: the layers to build from, such as ComfyUI's, which cast or offload weights; None:
    those of torch.nn.

    Raises:
        ModelMissingError: there is no such file.
        CheckpointError: the file is damaged, unsafe, or belongs to another network.
        SettingsError: unsupported dtype.
    """
    if dtype not in COMPUTE_DTYPES:
        raise SettingsError(f"TLB-VFI runs in float32, float16 or bfloat16, got {dtype}.")
    return _loaded(path, read_weights(Path(path)), dtype, device, operations)


def load_identified(
    path: str | Path, *, dtype: torch.dtype, device: torch.device
) -> tuple[TLBVFI, str]:
    """TLB-VFI as `load_checkpoint` gives it, and the `weights_hash` of its file, read once.

    Raises:
        ModelMissingError, CheckpointError: as `load_checkpoint`.
    """
    weights = read_weights(Path(path))
    return _loaded(path, weights, dtype, device), weights_hash(weights)


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the names, shapes, types and bytes of what `read_weights` gives.

    The same for a `.pth` and its conversion to `.safetensors`, so a session made with one can be
    resumed with the other.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> None:
    """Write what inference needs of `source` to the safetensors file `target`, atomically.

    `dtype`: type of the numbers in the file; below float32 the file is half the size and frames
    no longer equal the reference's. `overwrite`: whether an existing `target` is replaced.

    Raises:
        ModelMissingError, CheckpointError: as `load_checkpoint`.
        SettingsError: unsupported dtype, or `target` is not a `.safetensors`.
        OutputError: `target` exists, is being made or cannot be written, or the disk is full.
    """
    if dtype not in COMPUTE_DTYPES:
        raise SettingsError(f"weights can be float32, float16 or bfloat16, got {dtype}.")
    target = Path(target)
    if target.suffix != ".safetensors":
        raise SettingsError(f"{target} must end in .safetensors, the format it is written in.")
    weights = read_weights(Path(source))
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    with new_file(target, overwrite=overwrite) as temporary:
        _save(stored, temporary, target)


def _save(weights: dict[str, Tensor], temporary: Path, target: Path) -> None:
    temporary.touch()
    usual = temporary.stat().st_mode  # safetensors makes files that only the owner can read
    try:
        save_file(weights, temporary, metadata={"format": "pt", "network": "tlbvfi"})
    except SafetensorError as error:  # it raises no OSError
        raise OutputError(
            f"{target} cannot be written ({error}): free some space or choose another folder."
        ) from error
    temporary.chmod(usual)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors inference uses, by name, as stored (memory-mapped if the file allows).

    Raises:
        ModelMissingError, CheckpointError: as `load_checkpoint`.
    """
    tensors = _read_safetensors(path) if _format(path) == "safetensors" else _read_pth(path)
    used = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(DUPLICATES) and not UNUSED.fullmatch(name)
    }
    _check(used, path.name)
    return used


def _format(path: Path) -> Format:
    """The file's format by its content, whatever its name."""
    if not path.is_file():
        raise ModelMissingError(f"There is no TLB-VFI model at {path}: check the path.")
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{":
        return "safetensors"
    try:
        if zipfile.is_zipfile(path):
            return "zip"
    except zipfile.BadZipFile as error:
        raise _damaged(path) from error
    raise CheckpointError(f"{path.name} {_unreadable(head)}")


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path.name} is damaged: download it again.")


def _unreadable(head: bytes) -> str:
    """Why a file that begins with `head` is not a weights file, and what to do."""
    if not head:
        return "is empty: download it again."
    if head.startswith(b"PK"):
        return "is cut off or damaged: download it again."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: fetch the file itself (git lfs pull)."
    if head.lstrip().startswith(b"<"):
        return "is a web page, not weights: download the file itself, not the page about it."
    if head.startswith(b"\x80"):
        return "is a bare pickle, which could hold code and is not opened: use a .safetensors file."
    return "is neither a .safetensors nor a .pth file: choose the TLB-VFI checkpoint."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path.name} is not a complete safetensors file ({error}): download it again."
        ) from error


def _read_pth(path: Path) -> dict[str, Tensor]:
    _refuse_foreign_archive(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds something other than weights, which could be code and was not "
            "opened: use the official file or a .safetensors file."
        ) from error
    except SafetensorError as error:  # newer versions of torch go by the name
        raise CheckpointError(
            f"{path.name} is a .pth file by another name: rename it to {path.stem}.pth."
        ) from error
    except DAMAGE as error:
        raise _damaged(path) from error
    weights = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{path.name} holds no table of weights: choose the TLB-VFI checkpoint."
        )
    return {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}


def _refuse_foreign_archive(path: Path) -> None:
    """Refuse zip files that are not weights; torch before 2.6 would run a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        is_clear = _has_one_directory(path)
    except DAMAGE as error:
        raise _damaged(path) from error
    if not is_clear or not all(map(_has_clear_name, entries)):
        raise _damaged(path)
    names = [Path(entry.filename).name for entry in entries]
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path.name} is a TorchScript program, not weights: choose the TLB-VFI checkpoint."
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path.name} is a zip archive without weights: unpack it, or choose the TLB-VFI "
            "checkpoint."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(  # and a few kilobytes could unpack to more than the memory
            f"{path.name} is compressed, which PyTorch's own files are not: choose the TLB-VFI "
            "checkpoint as it was published."
        )


def _has_one_directory(path: Path) -> bool:
    """Whether torch reads the directory that `zipfile` reads: the one that ends where its end begins.

    The records at the end of an archive may name any other place, and `zipfile` ignores it.
    """
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - ENDS_64.size - DIRECTORY_END.size))
        records = file.read()
    begin = length - DIRECTORY_END.size
    mark, *_, size, offset, comment = DIRECTORY_END.unpack(records[-DIRECTORY_END.size :])
    if records[: -DIRECTORY_END.size][-PLACE_64:].startswith(b"PK\x06\x07"):
        begin -= ENDS_64.size
        mark_64, *_, size, offset, _, _, stated, _ = ENDS_64.unpack(records[: ENDS_64.size])
        if mark_64 != b"PK\x06\x06" or stated != begin:
            return False
    return mark == b"PK\x05\x06" and not comment and offset + size == begin


def _has_clear_name(entry: zipfile.ZipInfo) -> bool:
    """Whether torch knows the entry by the name that `zipfile` tells."""
    return entry.filename == entry.orig_filename and len(entry.filename.encode()) <= LONGEST_MEMBER


def _loaded(
    path: str | Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str,
    operations: Any = None,  # noqa: ANN401 - a namespace like torch.nn
) -> TLBVFI:
    """The network with a copy of the weights that were read from `path`."""
    with torch.device("meta"):
        model = TLBVFI(operations or Bare())
    placed = {name: _placed(tensor, device) for name, tensor in weights.items()}
    model.load_state_dict(placed, assign=True)
    log.info("loaded %s: %d tensors, %s on %s", path, len(placed), dtype, device)
    return model.eval().requires_grad_(False).to_compute_dtype(dtype)


def _placed(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Own float32 copy (the file may go away) in the layout that is fastest for convolutions."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.to(device=device, dtype=torch.float32, memory_format=layout, copy=True)


def _check(weights: Mapping[str, Tensor], name: str) -> None:
    """Raise unless names and shapes are those of the network; the text names what differs."""
    with torch.device("meta"):
        wanted = TLBVFI(Bare()).state_dict()
    if not wanted.keys() & weights.keys():
        raise CheckpointError(
            f"{name} holds {_network(weights)}, not TLB-VFI: choose the TLB-VFI checkpoint."
        )
    if differing := misfits(weights, wanted):
        raise CheckpointError(
            f"{name} does not fit the TLB-VFI network ({differing}): use vimeo_unet.pth."
        )


def _network(names: Iterable[str]) -> str:
    """The network that tensors of these names belong to, if it is known."""
    names = list(names)
    for network, beginning in OTHER_NETWORKS:
        if any(name.startswith(beginning) for name in names):
            return network
    return f"another network (with {names[0][:80]})" if names else "no tensors"
