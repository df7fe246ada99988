"""Images between the CPU and the device of a method, copied beside what it computes.

On the CPU both ways hand on what they are given. On CUDA each way has a stream of its own and
page-locked memory, which PyTorch's host allocator takes back and gives out again: as much of it
exists as there are copies under way and images in somebody's hands, however long the clip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Uploads:
    """Copies CPU images to a device; to be kept as long as images go there.

    Their memory belongs to the stream of the copies, so a new object per image would claim more.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, image: Tensor, device: torch.device) -> Tensor:
        """`image` on `device`, for use in the current stream; itself if it is there already.

        On CUDA this returns while the copy is under way; `image` may be overwritten.
        """
        if device.type != "cuda" or image.is_cuda:
            return image.to(device)
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            there = image.pin_memory().to(device, non_blocking=True)
        user = torch.cuda.current_stream(device)
        user.wait_stream(self._stream)
        there.record_stream(user)
        return there


class Download:
    """An image on its way to the CPU, begun as soon as the current stream has computed it."""

    def __init__(self, image: Tensor, stream: torch.cuda.Stream | None) -> None:
        self._image = image
        self._arrived: torch.cuda.Event | None = None
        if stream is None:
            return
        image = image.contiguous()
        stream.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(stream):
            self._image = torch.empty_like(image, device="cpu", pin_memory=True)
            self._image.copy_(image, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(stream)
        image.record_stream(stream)

    @property
    def takes_time(self) -> bool:
        """Whether the image is not on the CPU anyway."""
        return self._arrived is not None or self._image.device.type != "cpu"

    def result(self) -> Tensor:
        """The image on the CPU, once it is there; the very same where it has always been there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._image.cpu()


class Downloads:
    """Begins copies of images to the CPU, all in one stream."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, image: Tensor) -> Download:
        """The way of `image`, on any device, to the CPU."""
        if image.is_cuda and (self._stream is None or self._stream.device != image.device):
            self._stream = torch.cuda.Stream(image.device)
        return Download(image, self._stream if image.is_cuda else None)


def one_ahead(items: Iterable[T], takes_time: Callable[[T], bool]) -> Iterator[T]:
    """`items` in order, but one that takes time only after the next such one has been begun.

    So a device has work queued while the caller waits for and uses the item before. Nothing is
    begun before it is needed for that; an error while beginning an item is raised after the items
    before it.
    """
    begun: deque[T] = deque()
    slow = 0
    try:
        for item in items:
            begun.append(item)
            slow += takes_time(item)
            while begun and (slow > 1 or not takes_time(begun[0])):
                slow -= takes_time(begun[0])
                yield begun.popleft()
    except Exception:
        yield from begun
        raise
    yield from begun
