"""Draw attention: of a translation, and where queries may attend in an image.

`python examples/draw_attention.py "A man rides a bike."` needs the extra `text` for the first.
"""

import argparse
from pathlib import Path

import torch

import unimask
from unimask.checkpoints.images import load_model, resolve_weights
from unimask.data.read import read_image
from unimask.results.attention_drawing import draw_attention, draw_attention_masks

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("line", nargs="?", default="A man rides a red bike.")
parser.add_argument("--image", type=Path, default=Path(__file__).parent / "nuclei_1.png")
parser.add_argument("--output", type=Path, default=Path("output/attention"))
given = parser.parse_args()
given.output.mkdir(parents=True, exist_ok=True)

# who attends to whom: the last layer of the encoder, of the decoder, and between them
found = unimask.load_translator("en-de").attention(given.line)
source, target = found.source_pieces, found.target_pieces
for name, layers, rows, columns in (
    ("encoder", found.maps.encoder, source, source),
    ("masked", found.maps.decoder, target, target),
    ("cross", found.maps.cross, target, source),
):
    draw_attention(layers[-1][0], rows, columns).save(given.output / f"{name}.png")

# masked attention of Mask2Former: the surest queries, dark where they may not attend, in the last layer
model, model_file = load_model(resolve_weights("nuclei"))
image = read_image(given.image)[:, :128, :128]
backbone = model_file.experiment.model.backbone
mean, std = (torch.tensor(one)[:, None, None] for one in (backbone.image_mean, backbone.image_std))
pixels = ((image - mean) / std)[None]
with torch.no_grad():
    sure = model.eval()(pixels).class_logits[-1, 0].softmax(-1)[:, 0].topk(8).indices
    masks = model.attention_masks(pixels)[-1][0, sure]
draw_attention_masks(image, masks, columns=4).save(given.output / "masked_attention.png")
print(f"drawn into {given.output}")
