"""Copies of images between the CPU and a method's device, in parallel with its computation.

On the CPU both directions return their input. On CUDA each direction has its own stream and
page-locked memory, which PyTorch's host allocator reuses: there is as much of it as there are
copies under way and images in use, however long the clip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Uploads:
    """Copies CPU images to a device; keep it as long as images are copied there.

    Their memory belongs to the stream of the copies, so a new object per image would take more.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, image: Tensor, device: torch.device) -> Tensor:
        """`image` on `device`, for use in the current stream; `image` itself if already there.

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
    """An image on its way to the CPU, copied as soon as the current stream has computed it."""

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
        """The image on the CPU, after waiting for it; the same object if it was there already."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._image.cpu()


class Downloads:
    """Starts copies of images to the CPU, all in one stream."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, image: Tensor) -> Download:
        """The started download of `image`, which may be on any device."""
        if image.is_cuda and (self._stream is None or self._stream.device != image.device):
            self._stream = torch.cuda.Stream(image.device)
        return Download(image, self._stream if image.is_cuda else None)


def one_ahead(items: Iterable[T], takes_time: Callable[[T], bool]) -> Iterator[T]:
    """`items` in order, but a slow item only after the next slow item has been started.

    This keeps work queued on a device while the caller waits for and uses the item before. Nothing
    is started earlier than that; an error while starting an item is raised after the items before
    it.
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
