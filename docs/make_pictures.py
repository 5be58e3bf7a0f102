r"""Makes the pictures of the README with the library's own code: each picture beside its overlay.

    python docs/make_pictures.py                                   # the shipped model on examples/
    python docs/make_pictures.py --weights street --task semantic --images examples/street \
        --output docs/pictures/street.jpg
    python docs/make_pictures.py --weights runs/x/best --task instance --images my_pictures

The overlay is the model's answer and nothing else; with no model there is no picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import unimask
from unimask.data.read import image_files, read_image
from unimask.errors import UnimaskError

HERE = Path(__file__).parent
GAP = 8  # pixels between pictures, white


def fit(picture: Image.Image, height: int) -> Image.Image:
    """The picture at this height, its aspect kept."""
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def side_by_side(rows: Sequence[tuple[Image.Image, Image.Image]], height: int) -> Image.Image:
    """Each picture with its overlay at its right, the pairs below each other, on white."""
    scaled = [tuple(fit(picture, height) for picture in row) for row in rows]
    width = max(left.width + GAP + right.width for left, right in scaled)
    sheet = Image.new("RGB", (width, len(scaled) * (height + GAP) - GAP), "white")
    for number, (left, right) in enumerate(scaled):
        top = number * (height + GAP)
        sheet.paste(left, (0, top))
        sheet.paste(right, (left.width + GAP, top))
    return sheet


def main(arguments: Sequence[str] | None = None) -> Path:
    """Writes the picture; its path comes out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", default="nuclei", help="a model inside the package, or a model folder")
    parser.add_argument("--images", type=Path, nargs="+", default=[HERE.parent / "examples"])
    parser.add_argument("--task", default="panoptic", choices=("panoptic", "instance", "semantic"))
    parser.add_argument("--output", type=Path, default=None, help="by default docs/pictures/WEIGHTS.png")
    parser.add_argument("--most", type=int, default=2, help="so many pictures at most")
    parser.add_argument("--height", type=int, default=320, help="of each picture, in pixels")
    given = parser.parse_args(arguments)
    output = given.output or HERE / "pictures" / f"{Path(given.weights).name}.png"
    try:
        files = image_files(given.images)[: given.most]
        results = unimask.load(given.weights, device="cpu").predict(files, task=given.task)
        photos = [Image.fromarray(read_image(file).permute(1, 2, 0).numpy()) for file in files]
    except UnimaskError as error:
        parser.exit(2, f"error: {error}\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [(photo, result.plot()) for photo, result in zip(photos, results, strict=True)]
    side_by_side(rows, given.height).save(output, optimize=True)
    print(output)
    return output


if __name__ == "__main__":
    main()
