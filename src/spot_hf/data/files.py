"""Image files that a person names on the command line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image


IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN))
URL = ("http://", "https://")


def image_files(images: Sequence[str], argument: str = "images") -> Iterator[str]:
    """Files and URLs as they are; directories become the images in them and in their folders, by path. `ValueError`, which
    names the argument, for a directory without any."""
    for name in images:
        if not name.startswith(URL) and Path(name).is_dir():
            files = sorted(str(path) for path in Path(name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise ValueError(f"`{argument}`: the directory {name!r} holds no image files")
            yield from files
        else:
            yield name
