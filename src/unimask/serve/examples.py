"""The images that the page offers."""

from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg")  # that every browser shows


def shipped_examples() -> tuple[Path, ...]:
    """Return the images that come with the package; in a source tree those of its folder `examples`."""
    package = Path(__file__).parents[1]
    for folder in (package / "examples", package.parents[1] / "examples"):
        if folder.is_dir():
            return examples_in(folder)
    return ()


def examples_in(folder: Path) -> tuple[Path, ...]:
    """Return the images of a folder that browsers show, by name."""
    return tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES))
