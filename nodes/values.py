"""The values a node gets, as the types of its inputs.

ComfyUI checks what a widget holds and which types are linked; a link of any type carries anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..encoding.text import printable
from ..tlbvfi.errors import SettingsError

if TYPE_CHECKING:
    from comfy_api.latest import io

Execute = Callable[..., "io.NodeOutput"]


def checked(execute: Execute) -> Execute:
    """`execute` of a node, which then gets each value as the type of its input in the schema.

    Values for inputs that are not in it, which older packs had, are left out: ComfyUI itself leaves
    them out unless they come over a link.

    What it raises can be written to a log, whatever names it holds.

    Raises:
        SettingsError: a value is of another type.
    """

    @wraps(execute)
    def run(cls: type[io.ComfyNode], **values: object) -> io.NodeOutput:
        types = {each.id: _type_of(each) for each in cls.SCHEMA.inputs}
        known = [name for name in values if name in types]
        try:
            return execute(
                cls, **{name: as_type(types[name], name, values[name]) for name in known}
            )
        except Exception as error:
            make_writable(error)
            raise

    return run


def make_writable(error: BaseException | None) -> None:
    """Make the texts of an error and of its causes `writable`.

    Names of files hold halves of characters if they are not UTF-8. ComfyUI writes every error to its
    log, and its only worker ends for good with one that cannot be written.
    """
    while error is not None:
        error.args = tuple(writable(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


def writable(text: str) -> str:
    """A text that can be logged: as UTF-8, and without what terminals take for commands."""
    return printable(text.encode(errors="backslashreplace").decode())


def as_type(io_type: str, name: str, value: Any) -> Any:  # noqa: ANN401
    """`value` for an input of this type, such as `INT` or `IMAGE,VIDEO`; unknown types take all.

    Raises:
        SettingsError: it is of another type, and neither a number that came as text nor the reverse.
    """
    first, *others = io_type.split(",")
    is_video = "VIDEO" in others and hasattr(value, "get_components")  # as ComfyUI's videos have
    if first not in READERS or is_video:
        return value
    what, read = READERS[first]
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(
            f"{name} must be {what}, got {_described(value)}: set it, or connect another output."
        ) from error


def _type_of(each: io.Input) -> str:
    """ComfyUI's type of an input; a choice between whole numbers is one."""
    options = getattr(each, "options", None)
    return "INT" if options and isinstance(options[0], int) else each.get_io_type()


def _whole_number(value: Any) -> int:  # noqa: ANN401
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(value)
    return number


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str | int | float):
        raise TypeError(value)
    return str(value)


def _images(value: Any) -> Tensor:  # noqa: ANN401
    if not isinstance(value, Tensor) or value.ndim != 4:
        raise TypeError(value)
    return value


READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "INT": ("a whole number", _whole_number),
    "FLOAT": ("a number", float),
    "STRING": ("a text", _text),
    "COMBO": ("a text", _text),
    "IMAGE": ("a batch of images [frames, height, width, channels]", _images),
}
"""What the values of a type are, and how to read one."""


def _described(value: object) -> str:
    if value is None or isinstance(value, str | int | float):
        return f"{value!r:.80}"
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
