"""What can go wrong while interpolating, in words for the person who runs the job.

InterpolationError
├── SettingsError        a setting is out of range, or settings contradict each other
├── FrameError           frames that cannot be interpolated: shape, dtype, device, NaN
├── ModelMissingError    a method needs a weights file that was not found
├── CheckpointError      a weights file is damaged, unsafe, or belongs to another network
├── DownloadError        a download was refused, broke off, or delivered the wrong file
├── WorkflowError        a ComfyUI workflow cannot be read, rewritten or run as it is
├── ClientError          a running ComfyUI refused, failed, or gave an invalid answer
│   └── ServerLostError  it cannot be reached; its queue continues without us
└── MemoryBudgetError    the job does not fit into the available memory
"""


class InterpolationError(Exception):
    """Base of all errors of the interpolation layer. Its text is one sentence for the user."""


class SettingsError(InterpolationError):
    """A setting is out of range, or two settings contradict each other."""


class FrameError(InterpolationError):
    """Frames of a shape, dtype, device or content that cannot be interpolated."""


class ModelMissingError(InterpolationError):
    """The weights file of a method was not found; the text says where to put it."""


class CheckpointError(InterpolationError):
    """A weights file is damaged, unsafe, or belongs to another network."""


class DownloadError(InterpolationError):
    """A download was refused, broke off, or delivered a different file than the one promised."""


class MemoryBudgetError(InterpolationError):
    """The job does not fit into the available memory, even with the smallest settings."""


class WorkflowError(InterpolationError):
    """A ComfyUI workflow cannot be read, rewritten, or run as it is."""


class ClientError(InterpolationError):
    """A running ComfyUI refused a request, failed in a node, or gave an invalid answer."""


class ServerLostError(ClientError):
    """A running ComfyUI cannot be reached; its queue continues without us."""
