"""Whether tensors are the weights of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..encoding.errors import some_of

SHOWN = 5
"""Tensors listed in an error message."""


def misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What differs from the state of a network, by name and shape; empty if nothing does."""
    both = wanted.keys() & weights.keys()
    problems = [f"{key} is missing" for key in wanted.keys() - weights.keys()]
    problems += [f"{key} is unexpected" for key in weights.keys() - wanted.keys()]
    problems += [
        f"{key} is {list(weights[key].shape)} instead of {list(wanted[key].shape)}"
        for key in both
        if weights[key].shape != wanted[key].shape
    ]
    problems += [
        f"{key} holds no plain numbers ({weights[key].dtype})"
        for key in both
        if not _is_plain(weights[key])
    ]
    return some_of(sorted(problems), SHOWN, "; ")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is neither complex nor quantized, sparse or without content."""
    is_dense = tensor.layout == torch.strided and not tensor.is_meta
    return is_dense and tensor.is_floating_point()
