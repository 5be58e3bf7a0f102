"""Segment images and draw what was found: `python examples/predict_and_draw.py examples/*.png`."""

import argparse
from pathlib import Path

import unimask

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("images", type=Path, nargs="*", default=[Path(__file__).parent / "nuclei_1.png"])
parser.add_argument(
    "--weights", default="nuclei", help="a model of the package, a model folder, an ONNX file"
)
parser.add_argument("--task", default="instance", choices=("panoptic", "instance", "semantic", "detection"))
parser.add_argument("--output", type=Path, default=Path("output/predict_and_draw"))
given = parser.parse_args()

segmenter = unimask.load(given.weights)
given.output.mkdir(parents=True, exist_ok=True)
for result in segmenter.predict(given.images, task=given.task):
    print(f"{result.name}: {len(result)} found")
    for one in result[:5]:
        print(f"  {one.category} {one.score:.2f} at {one.bbox}")
    result.plot().save(given.output / f"{result.name}.png")
print(f"drawn into {given.output}")
