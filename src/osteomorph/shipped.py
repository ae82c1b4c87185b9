"""Weights that come with the package, each with its model card beside it."""

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"


def shipped_names() -> list[str]:
    """Of networks that predict a field: what ``--weights`` takes besides a file."""
    return sorted(path.stem for path in FOLDER.glob("thesis-*.safetensors"))


def weights_file(given: Path) -> Path:
    """The file itself, or the package's of that name where no such file is there."""
    if not given.exists() and str(given) in shipped_names():
        return FOLDER / f"{given}.safetensors"
    return given
