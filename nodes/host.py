"""What we ask of ComfyUI: folders, progress on the node, Cancel, memory and devices."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import psutil
import torch
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..tlbvfi.errors import MemoryBudgetError
from ..tlbvfi.progress import (
    ChunkDone,
    Encoding,
    Event,
    FrameDone,
    Joining,
    Notice,
    Reading,
    Started,
    Verifying,
)
from .paths import Folders, extra_read_folders
from .status import status_line, stopped_line
from .values import writable

log = logging.getLogger("tlbvfi.nodes")

SHOW_SECONDS = 0.5
"""Minimum time between two lines of text, or two previews: each preview is encoded as a JPEG."""
PREVIEW_PIXELS = 512
"""Longest side of a preview."""
Preview = tuple[str, Image.Image, int]
"""Format, picture and longest side, as ComfyUI takes them."""


def folders() -> Folders:
    """ComfyUI's current folders; the server's command line can move them.

    Links are resolved here, once: paths that are compared with these are resolved, too.
    """
    return Folders(
        input=Path(folder_paths.get_input_directory()).resolve(),
        output=Path(folder_paths.get_output_directory()).resolve(),
        temp=Path(folder_paths.get_temp_directory()).resolve(),
        readable=extra_read_folders(),
    )


def running_prompt_id() -> str:
    """What tells this run of a graph from others."""
    return PromptServer.instance.last_prompt_id


def empty_images(count: int, height: int, width: int, channels: int) -> Tensor:
    """An IMAGE batch to fill, on the device and in the dtype of ComfyUI's intermediate results."""
    shape = (count, height, width, channels)
    return torch.empty(shape, device=mm.intermediate_device(), dtype=mm.intermediate_dtype())


def memory_notice(count: int, height: int, width: int, channels: int) -> Notice | None:
    """A warning, with the number of GB, if a batch of this size does not fit into free memory.

    Raises:
        MemoryBudgetError: it does not fit into the total memory.
    """
    needed = count * height * width * channels * mm.intermediate_dtype().itemsize
    device = mm.intermediate_device()
    free, total = mm.get_free_memory(device), mm.get_total_memory(device)
    if device.type == "cpu":
        # Windows' page file grows as needed, to at most three times the memory; psutil knows its
        # present size alone, and not even that where performance counters are disabled.
        total += 3 * total if sys.platform == "win32" else psutil.swap_memory().total
    problem = (
        f"{count} frames of {width}x{height} need {needed / 1e9:.1f} GB as one IMAGE batch and"
    )
    remedy = "use TLBVFI Chunk Processor, which streams to a file."
    if needed > total:
        raise MemoryBudgetError(f"{problem} there are {total / 1e9:.1f} GB in all: {remedy}")
    if needed > free:
        return Notice(text=f"{problem} {free / 1e9:.1f} GB are free: {remedy}")
    return None


class NodeProgress:
    """Progress bar, text line and previews of one run of a node; here Cancel takes effect.

    Call it with the events of a job. Use it from the node's own thread only: ComfyUI's interrupt
    flag is cleared by whoever reads it.
    """

    def __init__(self, node_id: str, *, log_events: bool = False) -> None:
        self._log_events = log_events
        self.notices: list[str] = []
        self._line = self._done = ""
        self._resumes = False
        self._node_id = node_id
        self._bar = ProgressBar(1, node_id=node_id)
        self._last_chunk: ChunkDone | None = None
        self._shown = self._previewed = 0.0

    def __call__(self, event: Event) -> None:
        """Show an event. Raises ComfyUI's InterruptProcessingException on Cancel."""
        if self._log_events:
            log.info("%s", event)
        try:
            mm.throw_exception_if_processing_interrupted()
            self._show_event(event)  # ComfyUI's bar looks for Cancel as well
        except mm.InterruptProcessingException:
            self.show(stopped_line(self._done, resumes=self._resumes))
            raise

    def _show_event(self, event: Event) -> None:
        match event:
            case Reading(what=what, done=done, total=total):
                self._update(done, total)
                self._throttled(lambda: f"reading {what} {done}/{total}")
            case Started(encoder=encoder):
                self._resumes = True
                self.show(f"encoder {encoder}")
            case FrameDone():
                self._frame(event)
            case ChunkDone():
                self._last_chunk = event
            case Encoding(done=done, total=total):
                self._update(done, total)
                self._throttled(lambda: f"encoding frame {done}/{total}")
            case Joining(done=done, total=total):
                self._update(done, total)
                self._throttled(lambda: f"joining frame {done}/{total}")
            case Verifying(done=done, total=total):
                self._update(done, total)
                self._throttled(lambda: f"verifying frame {done}/{total}")
            case Notice(text=text):
                self.notices.append(writable(text))
                log.warning(writable(text))
                self.show(self._line)

    def show(self, line: str) -> str:
        """Show a line of text on the node, above the notices so far; the whole text."""
        self._line = line
        text = "\n".join(filter(None, [line, *self.notices]))
        server = PromptServer.instance
        if server.client_id is not None:  # a prompt sent by a script has no page to show it on
            encoded = text.encode(errors="replace")  # names of files need not be UTF-8
            server.send_progress_text(encoded, self._node_id, server.client_id)
        return text

    def _frame(self, event: FrameDone) -> None:
        preview = None
        # Not with the text: the frame that is due then may be a source frame, which has no image.
        if event.image is not None and _is_due(self._previewed):
            preview = _preview(event.image)
            self._previewed = time.monotonic()
        total = event.frames_total or event.frames_done
        self._update(event.frames_done, total, preview)
        self._throttled(lambda: status_line(event, self._last_chunk))

    def _update(self, done: int, total: int, preview: Preview | None = None) -> None:
        self._done = f"{done}/{total}"
        self._bar.update_absolute(done, total, preview)

    def _throttled(self, text: Callable[[], str]) -> None:
        if _is_due(self._shown):
            self.show(text())
            self._shown = time.monotonic()


def _is_due(last: float) -> bool:
    return time.monotonic() - last >= SHOW_SECONDS


def _preview(image: Tensor) -> Preview:
    """A [C, H, W] frame in [0, 1], subsampled by a whole factor first: 10 ms less for 4K."""
    step = max(1, max(image.shape[1:]) // PREVIEW_PIXELS)
    small = image[:3, ::step, ::step].clamp(0, 1).mul(255).round().to(torch.uint8)
    return "JPEG", Image.fromarray(small.movedim(0, -1).contiguous().numpy()), PREVIEW_PIXELS
