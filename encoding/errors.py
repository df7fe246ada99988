"""What can go wrong with video files, worded for the user.

VideoError
├── SourceError          the input is missing, not a video, empty, damaged, or changes midway
├── DecoderError         the requested hardware decoder cannot be used here
├── EncoderError         an encoder, option, pixel format or size that cannot be used here
├── OutputError          the destination exists, is not writable, or its disk is full
├── SessionError         a session id, lock, manifest or chunk is not what it should be
│   └── SessionMismatch  the session belongs to another source or other settings
└── VerificationError    a file differs from the plan; the text lists where
"""

from collections.abc import Sequence


class VideoError(Exception):
    """Base of all errors of the encoding layer. Its text is one sentence for the user."""


class SourceError(VideoError):
    """The input is missing, not a video, empty, damaged, or changes midway."""


class DecoderError(VideoError):
    """The requested hardware decoder does not exist here or cannot decode the video."""


class EncoderError(VideoError):
    """An encoder, option, pixel format or frame size cannot be used on this machine."""


class OutputError(VideoError):
    """The destination exists already, is not writable, or its disk is full."""


class SessionError(VideoError):
    """A session's id, lock, manifest or chunks are not what they should be."""


class SessionMismatch(SessionError):  # noqa: N818 - the tree above reads better without "Error"
    """The session was made from another source or with other settings."""


class VerificationError(VideoError):
    """A file differs from what was planned; the text says how."""


def some_of(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """`a, b and 3 more`: the first texts, and how many there are beyond `most`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more
