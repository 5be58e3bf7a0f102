"""Push a model folder to the Hugging Face hub, with a model card."""

import json
import shutil
import tempfile
from pathlib import Path

import yaml

import unimask
from unimask.checkpoints.images import CONFIG_NAME, WEIGHTS_NAME, ModelFile, load_model, resolve_weights
from unimask.checkpoints.text import is_sequence_model
from unimask.config.models import AnyModelConfig, DetrConfig, EomtConfig, tasks_of
from unimask.conversion.run import Format, convert
from unimask.errors import DataError, WeightsError, first_line
from unimask.files import read_json, write_text

CARD = "README.md"
_LICENCES = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")
"""The hub's names of licences, as ours begin; of another it keeps the text."""


def push(
    folder: str | Path,
    name: str,
    *,
    to: Format = "unimask",
    evaluation: str | Path | None = None,
    private: bool = False,
    endpoint: str | None = None,
) -> str:
    """Push a model to the hub as `name` (`owner/name`), made if it is not there; return its address.

    The model's two files, in our layout or that of transformers, and a card are uploaded. `evaluation` is
    what `unimask evaluate --output` wrote; its measures stand in the card. The hub's token is that of
    `hf auth login` or `HF_TOKEN`. A repository gets all files in one commit, or none.

    Args:
        folder: a model folder, a run, or a model of the package; of images, not of text.
        endpoint: address of the hub; None: `HF_ENDPOINT`, else huggingface.co.

    Raises:
        WeightsError: there is no such model, the layout has no counterpart of it, or the hub refuses.
        DataError: the evaluation cannot be read.
    """
    from huggingface_hub import HfApi

    if is_sequence_model(folder):
        raise WeightsError(folder, "translates text; models of images can be pushed")
    if to == "original":
        raise WeightsError(folder, "goes onto the hub as unimask or as transformers, not in original files")
    source = resolve_weights(folder)
    model, model_file = load_model(source)  # a model that cannot be loaded is not uploaded
    parameters = sum(one.numel() for one in model.parameters())
    measured = _measured(evaluation)
    with tempfile.TemporaryDirectory() as temporary:
        ready = Path(temporary) / "model"
        if to == "unimask":
            ready.mkdir()
            for file in (CONFIG_NAME, WEIGHTS_NAME):
                shutil.copy(source / file, ready / file)
        else:
            convert(source, ready, to)
        usage = _usage(name, ready, to)
        write_text(ready / CARD, model_card(name, model_file, parameters, usage, to, measured))
        hub = HfApi(endpoint=endpoint, library_name="unimask", library_version=unimask.__version__)
        try:
            hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=ready, commit_message="Model of unimask")
        except Exception as error:  # the hub's client can fail in many ways; the upload is one commit
            raise WeightsError(
                name,
                f"could not be put onto the hub ({first_line(error)}); log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may write there",
            ) from None
    return f"{hub.endpoint}/{name}"


def model_card(
    name: str, model_file: ModelFile, parameters: int, usage: str, to: Format, measured: str
) -> str:
    """Return the Markdown of a model card: what it finds, how it was made, its licence, how to use it."""
    model = model_file.experiment.model
    boxes = model_file.task == "detection"
    said = model_file.licence.lower()
    licence = next((one for one in _LICENCES if said.startswith(one)), "other")
    about: dict[str, object] = {
        "library_name": to,
        "pipeline_tag": "object-detection" if tasks_of(model) == ("detection",) else "image-segmentation",
        "license": licence,
        "tags": ["unimask", model.kind, model_file.task],
    }
    if licence == "other":
        about["license_name"] = "see-below"
    names = ", ".join(model_file.categories.names[:40])
    more = len(model_file.categories) - 40
    parts = [
        "---\n" + yaml.safe_dump(about, sort_keys=False, allow_unicode=True) + "---\n",
        f"# {name.rpartition('/')[2]}\n",
        f"A model for {model_file.task} {'of objects' if boxes else 'segmentation'}: {_architecture(model)}, "
        f"backbone `{model.backbone.name}`, {parameters / 1e6:.1f} million parameters.\n",
        f"**Finds** {names}{f' and {more} more' if more > 0 else ''}.\n",
        f"**Licence of the weights:** {model_file.licence}\n",
        f"**Made by:** {model_file.provenance}\n",
        measured,
        usage,
    ]
    return "\n".join(parts)


def _architecture(model: AnyModelConfig) -> str:
    if isinstance(model, DetrConfig):
        return "DETR"
    if isinstance(model, EomtConfig):
        return "EoMT"
    if model.classification == "pixels":
        return "per-pixel classification"
    return "mask classification (MaskFormer, Mask2Former)"


def _usage(name: str, folder: Path, to: Format) -> str:
    """Return how a pushed model is used; the class in transformers is the one that its files name."""
    command = f"unimask predict photo.jpg --weights {name}"
    if to == "unimask":
        return f"```sh\npip install unimask\n{command}\n```\n"
    model_class = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["architectures"][0]
    return (
        f"The files are those of transformers; `{command}` takes them too.\n\n"
        "```python\n"
        f"from transformers import AutoImageProcessor, {model_class}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
        f'model = {model_class}.from_pretrained("{name}")\n'
        "```\n"
    )


def _measured(evaluation: str | Path | None) -> str:
    """Return a table of what `unimask evaluate --output` wrote; measures without a value are left out."""
    if evaluation is None:
        return "No measures are given.\n"
    content = read_json(Path(evaluation))
    values = content.get("values") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(values, dict):
        raise DataError(evaluation, "holds no measures; name what `unimask evaluate --output` wrote")
    rows = [
        f"| {measure} | {value:.4f} |\n"
        for measure, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    about = f"{content.get('task', 'the task')}, {content.get('images', 'unknown number of')} images"
    return f"Measured with `unimask evaluate` ({about}):\n\n| measure | value |\n|---|---|\n{''.join(rows)}"
