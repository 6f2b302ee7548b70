"""What `dcae compare` writes carries a mark, and only what carries it is written over or deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError, OptionError
from ..files import atomic_write
from ..untrusted import open_image

__all__ = ["GENERATOR", "META", "check_output", "check_page", "delete_others", "pictures_folder", "write_picture"]

GENERATOR = "dcae compare"
META = f'<meta name="generator" content="{GENERATOR}">'  # a page's mark
MARKS = META.encode(), f'"generator": "{GENERATOR}"'.encode()  # a page's, and that of JSON
HEAD = 200  # bytes at a file's start, where they are
SOFTWARE = 0x0131  # the EXIF tag in which pictures have it
PICTURE = re.compile(r"[0-9]+(-[0-9]+(-difference)?)?\.png")  # the names in a page's folder


def check_output(path: str | os.PathLike[str], *endings: str) -> None:
    """Raise OptionError where `path` ends in none of `endings` (none given: in any way), or where something is there
    that is not an earlier output of `dcae compare`."""
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise OptionError(f"{path} does not end in {' or '.join(endings)}: name it {path}{endings[0]}.")
    if os.path.lexists(path) and not _is_ours(path):
        raise OptionError(
            f"{path} is there and was not written by dcae compare, or not by this version: it is left as it is. Name "
            "another file, or delete it."
        )


def check_page(path: str | os.PathLike[str]) -> None:
    """The same for a page, with what is in the folder of its pictures."""
    check_output(path, ".html", ".htm")
    folder = pictures_folder(path)
    if os.path.lexists(folder) and not folder.is_dir():
        raise OptionError(f"{folder} is no folder, and the page's pictures go into one so named: name another page.")
    for picture in _pictures(folder):
        check_output(picture)


def pictures_folder(page: str | os.PathLike[str]) -> Path:
    page = Path(page)
    return page.with_name(page.stem + "_files")


def write_picture(path: Path, picture: Tensor | Image.Image) -> None:
    """Write [H, W, 3] in [0, 1], or a Pillow image, in the format of the file's ending, with the mark in its EXIF.
    Formats without EXIF (.bmp, .gif) have none, and are never written over. Raises ImageError."""
    exif = Image.Exif()
    exif[SOFTWARE] = GENERATOR
    try:
        if isinstance(picture, Tensor):
            picture = Image.fromarray((picture * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
        with atomic_write(path) as part:
            picture.save(part, format=Image.registered_extensions()[path.suffix.lower()], exif=exif)
    except Exception as error:  # encoders raise any type, as for sides a format does not allow
        raise ImageError(f"{path} can't be written: {error}.") from error


def delete_others(folder: Path, names: set[str]) -> None:
    """Delete the pictures of an earlier page in its folder, but for `names`. Nothing else there is touched."""
    for picture in _pictures(folder):
        if picture.name not in names and _is_ours(picture):
            picture.unlink()


def _pictures(folder: Path) -> Iterator[Path]:
    """Everything in a folder that has the name of a page's picture."""
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if PICTURE.fullmatch(path.name))


def _is_ours(path: Path) -> bool:
    try:
        if not path.is_file() or path.is_symlink():
            return False
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if any(mark in head for mark in MARKS):
            return True
        with open_image(path) as image:
            return image.getexif().get(SOFTWARE) == GENERATOR
    except Exception:  # Pillow raises any type for what is no picture
        return False
