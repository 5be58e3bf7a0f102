"""`unimask convert`, `push`, `export`, `presets` and `bench`."""

import dataclasses
from typing import TYPE_CHECKING

import unimask
from unimask.cli import output as show
from unimask.cli import tables
from unimask.cli.options import models, shared
from unimask.cli.options.parsing import parse_size

if TYPE_CHECKING:
    from unimask.config.models import AnyModelConfig


def convert(
    source: models.Source,
    target: models.Target,
    to: models.To = models.WeightFormat.unimask,
    licence: shared.Licence = "not stated",
    base: shared.Base = None,
    stuff: models.Stuff = None,
    as_json: shared.Json = False,
) -> None:
    """Convert weights of other releases (Mask2Former, MaskFormer, EoMT, DETR, Marian), and back.

    Files are read without executing code in them. Each setting of transformers is converted or refused by
    name; assumptions are reported.

    Examples:
      unimask convert model_final.pkl models/coco
      unimask convert facebook/mask2former-swin-tiny-coco-panoptic models/tiny
      unimask convert tue-mps/coco_panoptic_eomt_large_640 models/eomt
      unimask convert models/tiny exported --to transformers
    """
    from unimask.checkpoints.images import ModelFile

    model_file = unimask.convert(source, target, to=to.value, licence=licence, base=base, stuff=stuff)
    found: dict[str, object] = {"target": str(target)}
    if isinstance(model_file, ModelFile):
        found["backbone"] = model_file.experiment.model.backbone.name
        found["queries"] = _queries(model_file.experiment.model)
        found["categories"] = len(model_file.categories)
    found["provenance"] = model_file.provenance
    if as_json:
        show.show_json(found)
    else:
        for name, value in found.items():
            show.show_line(f"{name}: {value}")


def push(
    folder: models.PushedFolder,
    name: models.HubName,
    to: models.To = models.WeightFormat.unimask,
    evaluation: models.PushedEvaluation = None,
    private: models.Private = False,
    as_json: shared.Json = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a model card: data, licence, origin and measures.

    The repository is created if it does not exist. Log in once with `hf auth login`, or set HF_TOKEN.

    Examples:
      unimask push runs/first/best me/shelves --evaluation measured.json
      unimask push runs/first/best me/shelves --to transformers --private
      unimask predict photo.jpg --weights me/shelves
    """
    address = unimask.push(folder, name, to=to.value, evaluation=evaluation, private=private)
    if as_json:
        show.show_json({"address": address})
    else:
        show.show_line(f"the model is at {address}")


def _queries(model: "AnyModelConfig") -> int:
    return model.query_decoder.queries if model.kind == "masks" else model.queries


def export(
    weights: shared.Weights,
    output: models.ExportedFile,
    format: models.ExportedFormat = models.ExportFormat.onnx,
    images: models.ParityImages = None,
    as_json: shared.Json = False,
) -> None:
    """Export a model to one file that runs without unimask: ONNX, or a program of torch.export.

    Batch size, height and width are dynamic. A report is written beside the file: the largest difference
    between the outputs of file and model, the agreement of their results, and the time of both.

    Examples:
      unimask export --weights nuclei --output nuclei.onnx
      unimask export --weights runs/first --format onnx-int8 --output small.onnx
      unimask predict photo.jpg --weights nuclei.onnx
    """
    from unimask.data.read import image_files

    compared = image_files(images) if images else ()
    with show.without_others():
        report = unimask.export(weights, output, format.value, compared)
    if as_json:
        show.show_json(dataclasses.asdict(report))
    else:
        tables.show_parity(report, str(output))


def presets(name: models.PresetName = "", as_json: shared.Json = False) -> None:
    """List the named experiments, or every setting of one of them.

    `unimask train --preset NAME` starts from one of them; --set changes its settings.

    Examples:
      unimask presets
      unimask presets small
    """
    from unimask.config.values import settings_to_dict
    from unimask.presets import PRESETS, TRANSLATION_PRESETS, description, named

    if name:
        values = settings_to_dict(named(name))
        if as_json:
            show.show_json(values)
        else:
            tables.show_settings(values)
        return
    descriptions = {preset: description(preset) for preset in (*PRESETS, *TRANSLATION_PRESETS)}
    if as_json:
        show.show_json(descriptions)
    else:
        tables.show_presets(descriptions)


def bench(
    weights: shared.Weights = "nuclei",
    size: models.Size = "640x640",
    task: shared.ModelTask = None,
    compare: models.Compare = None,
    device: shared.Device = "auto",
    precision: shared.Precision = shared.PrecisionName.full,
    threads: models.Threads = 0,
    rounds: models.RoundCount = 10,
    as_json: shared.Json = False,
) -> None:
    """Measure the speed and the memory of a model on this machine.

    A generated image is segmented: preprocessing, the model, postprocessing and encoding the result are timed
    separately. A reduced precision is measured beside the full one. With --compare, the same weights also run
    in the other library, in alternation, after the results of both have been compared.

    Examples:
      unimask bench --weights nuclei --size 512x512
      unimask bench --weights models/coco --compare transformers
    """
    from unimask.benchmark.measure import bench as run
    from unimask.benchmark.measure import to_plain

    found = run(
        weights,
        size=parse_size(size),
        task=task.value if task else None,
        device=device,
        precision=precision.value,
        threads=threads,
        rounds=rounds,
        compare=compare.value if compare else "",
    )
    if as_json:
        show.show_json(to_plain(found))
    else:
        tables.show_bench(found)
