"""FILM, the frame interpolation network for large motion, in the layout of `film_net_*.safetensors`.

Source: Reda, Kontkanen, Tabellion, Sun, Pantofaru, Curless, "FILM: Frame Interpolation for Large
Motion", ECCV 2022.

    film = load_film("film_net_fp16.safetensors")
    frames = film(frame0, frame1, [Fraction(1, 3), Fraction(2, 3)])  # two of [B, 3, H, W]

The network does not clamp: its frames overshoot [0, 1] slightly. The one clamp is in
`methods/film.py`.
"""

from .layers import warp
from .load import load_film, weights_hash
from .memory import predict_peak_memory
from .network import FilmFeatures, FilmFlows, FilmNet

__all__ = [
    "FilmFeatures",
    "FilmFlows",
    "FilmNet",
    "load_film",
    "predict_peak_memory",
    "warp",
    "weights_hash",
]
