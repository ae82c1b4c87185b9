"""Registration of two 3-D images of one patient: bones rigid, soft tissue smooth. The public names, loaded when used."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Alignment": "objective",
    "Case": "case",
    "Chain": "transforms",
    "Displacement": "transforms",
    "Grid": "geometry",
    "Image": "image",
    "InputError": "errors",
    "Labels": "image",
    "Objective": "objective",
    "Plan": "plan",
    "Registration": "result",
    "Rigid": "transforms",
    "Term": "objective",
    "Transform": "transforms",
    "Velocity": "transforms",
    "read_image": "io",
    "read_labels": "io",
    "read_transform": "io",
    "register": "registration",
    "resample": "resampling",
    "write_image": "io",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"osteomorph.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'osteomorph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
