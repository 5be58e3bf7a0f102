"""The results of a folder of images as a dataset of FiftyOne."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unimask.data.read import image_files
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError, needs_extra
from unimask.files import exists
from unimask.inference.run import output_names
from unimask.results.formats.fiftyone import mask_targets
from unimask.results.reading import read_result

if TYPE_CHECKING:
    import fiftyone


def fiftyone_dataset(
    results: str | Path,
    images: str | Path,
    name: str | None = None,
    *,
    field: str = "prediction",
    reading: Reading = PLAIN,
) -> "fiftyone.Dataset":
    """Return a new dataset of FiftyOne: the images of a folder, each with what `unimask predict` found in it.

    `unimask.predict(model, [images], results)` wrote the results. A sample's label (`Result.to_fiftyone`) is
    in its `field`; an image that has no result is a sample without one. Images are read one at a time.
    `reading` is how they were read for the model, where that is not the default.

    Raises:
        MissingPackageError: fiftyone is not installed (the extra `fiftyone` of unimask).
        DataError: none of the images has a result, or one cannot be read; no dataset is left behind then.
        ValueError: there is a dataset of this name already (FiftyOne says so).
    """
    with needs_extra("fiftyone", "fiftyone_dataset"):
        import fiftyone
    files = image_files([images])
    found = [Path(results) / f"{one}.json" for one in output_names(files)]
    if not any(exists(path) for path in found):
        raise DataError(
            results, f"has no result of an image in {images}; expected for example {found[0].name}"
        )
    targets: dict[int, str] = {}

    def samples() -> Iterator["fiftyone.Sample"]:
        for file, path in zip(files, found, strict=True):
            sample = fiftyone.Sample(filepath=str(file.absolute()))
            if exists(path):
                result = read_result(path, file, reading)
                sample[field] = result.to_fiftyone()
                if result.task == "semantic":
                    targets.update(mask_targets(result.categories))
            yield sample

    dataset = fiftyone.Dataset(name)
    try:
        dataset.add_samples(samples(), num_samples=len(files))
        if targets:
            dataset.mask_targets = {field: targets}
            dataset.save()
    except BaseException:
        dataset.delete()
        raise
    return dataset
