"""Export a model to ONNX and run it with and without unimask: `python examples/export_and_run.py`.

Needs the extra `export` (pip install 'unimask[export]').
"""

import argparse
from pathlib import Path

import numpy as np
from onnx_in_numpy import Model, segment
from PIL import Image

import unimask
from unimask.data.read import read_image

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--weights", default="nuclei")
parser.add_argument("--image", type=Path, default=Path(__file__).parent / "nuclei_2.png")
parser.add_argument("--output", type=Path, default=Path("output/nuclei.onnx"))
given = parser.parse_args()

given.output.parent.mkdir(parents=True, exist_ok=True)
# what both say about a part of the image is compared while exporting
unimask.export(given.weights, given.output, images=[read_image(given.image)[:, :192, :192]])

# with unimask: the file stands where a model folder does
result = unimask.load(given.output).predict(given.image, task="instance")
print(f"unimask with the ONNX file: {len(result.segments)} instances")

# without it: numpy and onnxruntime alone
found = segment(Model(given.output), np.asarray(Image.open(given.image).convert("RGB")), "instance")
print(f"numpy and onnxruntime: {len(found)} instances")
