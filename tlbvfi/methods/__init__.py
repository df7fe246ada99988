"""One file per interpolation method, each an adapter behind the Method protocol."""

from __future__ import annotations

from ..errors import SettingsError
from ..method import Method
from .config import METHODS, WITHOUT_WEIGHTS, MethodConfig

__all__ = ["METHODS", "WITHOUT_WEIGHTS", "MethodConfig", "create_method"]


def create_method(config: str | MethodConfig) -> Method:
    """The method with its weights loaded; torch and the networks are imported only here.

    `config`: its name, or its name and options.

    Raises:
        ModelMissingError: the method needs weights that were not found.
        CheckpointError: the weights file is not usable.
        SettingsError: an option is out of range.
    """
    from ..config import require_settings

    config = MethodConfig(name=config) if isinstance(config, str) else config
    if not isinstance(config, MethodConfig):
        raise SettingsError(
            f"method is {config!r:.80}: pass a name such as 'flow', a MethodConfig, or what "
            "create_method returned."
        )
    require_settings(config)
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
