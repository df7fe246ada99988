"""Make the picture for the README: source frame, mid frame, source frame.

    python scripts/readme_picture.py [--method flow] [--pair 9] [--output docs/mid_frame.jpg]

The mid frame is the one `tlbvfi interpolate` writes, read back from the file.
"""

import argparse
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
from comfyui_tlbvfi.tlbvfi.cli import main as tlbvfi

CLIP = Path(__file__).resolve().parent.parent / "examples" / "big_buck_bunny.mp4"
CAPTIONS = ("source frame", "mid frame, made", "source frame")


def panel(picture: av.VideoFrame, caption: str) -> np.ndarray:
    """A frame with its caption below it, BGR."""
    image = cv2.resize(picture.to_ndarray(format="bgr24"), (480, 270), interpolation=cv2.INTER_AREA)
    strip = np.full((32, 480, 3), 24, np.uint8)
    cv2.putText(
        strip, caption, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (235, 235, 235), 1, cv2.LINE_AA
    )
    return np.concatenate([image, strip])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="flow")
    parser.add_argument("--pair", type=int, default=9)
    parser.add_argument("--output", default="docs/mid_frame.jpg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "out.mkv"
        words = [
            "interpolate",
            str(CLIP),
            str(made),
            "--method",
            arguments.method,
            "--codec",
            "ffv1",
        ]
        if tlbvfi(words):
            raise SystemExit(1)
        with av.open(str(made)) as container:
            frames = list(container.decode(video=0))[2 * arguments.pair :][:3]
    panels = [panel(*each) for each in zip(frames, CAPTIONS, strict=True)]
    cv2.imwrite(arguments.output, np.concatenate(panels, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
