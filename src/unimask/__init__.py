"""An image becomes segments: Mask2Former for panoptic, instance and semantic segmentation."""

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimask import presets
    from unimask.config.overrides import override
    from unimask.conversion.publish import push
    from unimask.conversion.run import convert
    from unimask.data.check import check
    from unimask.data.own import make_categories, make_sample
    from unimask.data.packing import write_shards
    from unimask.exporting.run import export
    from unimask.inference.engine_ray import predict_dataset
    from unimask.inference.evaluation import evaluate
    from unimask.inference.fiftyone_dataset import fiftyone_dataset
    from unimask.inference.loading import load
    from unimask.inference.run import predict
    from unimask.inference.segmenter import Segmenter
    from unimask.inference.translator import load_translator
    from unimask.results.reading import read_result
    from unimask.results.result import Result
    from unimask.structures import Dataset, Sample
    from unimask.training.compare import compare
    from unimask.training.plan import plan
    from unimask.training.run import train

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Result",
    "Sample",
    "Segmenter",
    "__version__",
    "check",
    "compare",
    "convert",
    "evaluate",
    "export",
    "fiftyone_dataset",
    "load",
    "load_translator",
    "make_categories",
    "make_sample",
    "override",
    "plan",
    "predict",
    "predict_dataset",
    "presets",
    "push",
    "read_result",
    "train",
    "write_shards",
]

_MODULES = {
    "Dataset": "unimask.structures",
    "Result": "unimask.results.result",
    "Sample": "unimask.structures",
    "Segmenter": "unimask.inference.segmenter",
    "check": "unimask.data.check",
    "compare": "unimask.training.compare",
    "convert": "unimask.conversion.run",
    "evaluate": "unimask.inference.evaluation",
    "export": "unimask.exporting.run",
    "fiftyone_dataset": "unimask.inference.fiftyone_dataset",
    "load": "unimask.inference.loading",
    "load_translator": "unimask.inference.translator",
    "make_categories": "unimask.data.own",
    "make_sample": "unimask.data.own",
    "override": "unimask.config.overrides",
    "plan": "unimask.training.plan",
    "predict": "unimask.inference.run",
    "predict_dataset": "unimask.inference.engine_ray",
    "push": "unimask.conversion.publish",
    "read_result": "unimask.results.reading",
    "train": "unimask.training.run",
    "write_shards": "unimask.data.packing",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import unimask` alone does not load torch."""
    if name == "presets":
        return _import("unimask.presets")
    if name not in _MODULES:
        raise AttributeError(f"module 'unimask' has no attribute {name!r}")
    value = getattr(_import(_MODULES[name]), name)
    globals()[name] = value
    return value


def _import(name: str) -> ModuleType:
    """Import a module without searching for garbage: torch makes 340,000 objects, and all of them stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if enabled:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
