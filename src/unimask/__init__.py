"""A picture becomes segments: Mask2Former for panoptic, instance and semantic segmentation."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimask.inference.segmenter import Segmenter, load
    from unimask.results.segments import Result

__version__ = "0.1.0"
__all__ = ["Result", "Segmenter", "__version__", "load"]

_HOMES = {
    "Result": "unimask.results.segments",
    "Segmenter": "unimask.inference.segmenter",
    "load": "unimask.inference.segmenter",
}


def __getattr__(name: str) -> object:
    """The public names, imported when they are first used: `import unimask` alone does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unimask' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
