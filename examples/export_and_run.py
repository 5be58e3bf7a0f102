"""Export a model to ONNX and run it without PyTorch: `python examples/export_and_run.py`.

Needs the extra `export` (pip install 'unimask[export]').
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
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

# without unimask: normalised pixels in, class logits, mask embeddings and mask features out
session = onnxruntime.InferenceSession(given.output, providers=["CPUExecutionProvider"])
pixels = np.asarray(Image.open(given.image).convert("RGB").resize((128, 128)), dtype=np.float32)
pixels = ((pixels - 127.5) / 127.5).transpose(2, 0, 1)[
    None
]  # mean and deviation: backbone.image_mean, image_std
names = [one.name for one in session.get_outputs()]
for name, value in zip(names, session.run(None, {session.get_inputs()[0].name: pixels}), strict=True):
    print(f"{name}: {value.shape}")
