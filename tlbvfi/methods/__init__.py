"""One file per interpolation method, each an adapter behind the Method protocol."""

from __future__ import annotations

from ..method import Method
from .config import METHODS, WITHOUT_WEIGHTS, MethodConfig

__all__ = ["METHODS", "WITHOUT_WEIGHTS", "MethodConfig", "create_method"]


def create_method(config: MethodConfig) -> Method:
    """The method with its weights loaded; torch and the networks are imported only here.

    Raises:
        ModelMissingError: the method needs weights that were not found.
        CheckpointError: the weights file is not usable.
        SettingsError: an option is out of range.
    """
    if config.name == "flow":
        from .flow import FlowMethod

        return FlowMethod()
    if config.name == "blend":
        from .blend import BlendMethod

        return BlendMethod()
    from ..models import find_model

    path = find_model(config.name, path=config.model)
    if config.name == "film":
        from .film import open_film

        return open_film(path, config)
    from .tlbvfi import open_tlbvfi

    return open_tlbvfi(path, config)
