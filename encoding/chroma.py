"""Converts chroma planes between their own resolution and that of luma.

The two directions are biorthogonal wavelet pairs, so that `downsample` undoes `upsample` exactly:
chroma that came from a 4:2:0 source and passed through RGB goes back as it was. Chroma is sited as
H.264, HEVC and MPEG-2 assume by default: on the left of the two columns, between the two rows
(ITU-T H.264 annex E, chroma_sample_loc_type 0). Edges are replicated.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

ROW_TAPS = (3 / 64, -9 / 64, -7 / 64, 45 / 64, 45 / 64, -7 / 64, -9 / 64, 3 / 64)
COLUMN_TAPS = (-1 / 8, 2 / 8, 6 / 8, 2 / 8, -1 / 8)


def upsample(plane: Plane, log2_x: int, log2_y: int) -> Plane:
    """[h, w] -> [h << log2_y, w << log2_x]."""
    for _ in range(log2_y):
        plane = _double_rows(plane)
    for _ in range(log2_x):
        plane = _double_columns(plane)
    return plane


def downsample(plane: Plane, log2_x: int, log2_y: int) -> Plane:
    """[h, w] -> [ceil(h / 2**log2_y), ceil(w / 2**log2_x)]."""
    for _ in range(log2_y):
        plane = _halve_rows(plane)
    for _ in range(log2_x):
        plane = _halve_columns(plane)
    return plane


def _double_rows(plane: Plane) -> Plane:
    """Linear, new rows a quarter above and below the old ones: synthesis (1 3 3 1) / 4."""
    padded = cv2.copyMakeBorder(plane, 1, 1, 0, 0, cv2.BORDER_REPLICATE)
    tall = np.empty((2 * plane.shape[0], plane.shape[1]), np.float32)
    near = plane * np.float32(0.75)
    far = np.multiply(padded, np.float32(0.25), out=padded)
    np.add(near, far[:-2], out=tall[0::2])
    np.add(near, far[2:], out=tall[1::2])
    return tall


def _double_columns(plane: Plane) -> Plane:
    """Linear, every second new column on an old one: synthesis (1 2 1) / 2."""
    between = np.empty_like(plane)
    np.add(plane[:, :-1], plane[:, 1:], out=between[:, :-1])
    between[:, -1] = 2 * plane[:, -1]
    between *= np.float32(0.5)
    height, width = plane.shape
    woven = np.asarray(cv2.merge([plane, between]), np.float32)
    return woven.reshape(height, 2 * width)


def _halve_rows(plane: Plane) -> Plane:
    """Every second row after the analysis filter dual to (1 3 3 1) / 4 (bior3.3)."""
    return _filter(plane, np.array(ROW_TAPS, np.float32)[:, None], (0, 3))[::2]


def _halve_columns(plane: Plane) -> Plane:
    """Every second column after the analysis filter dual to (1 2 1) / 2 (5/3, as in JPEG 2000)."""
    return _filter(plane, np.array(COLUMN_TAPS, np.float32)[None], (2, 0))[:, ::2]


def _filter(plane: Plane, taps: Plane, anchor: tuple[int, int]) -> Plane:
    filtered = cv2.filter2D(plane, -1, taps, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(filtered, np.float32)
