"""Bring any picture that Pillow opens to upright sRGB, and say what that took: colour profiles, transparency,
animations, more than 8 bits. Without torch, since processes that prepare data sets use it too."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError
from ..untrusted import picture_endings

if TYPE_CHECKING:
    from PIL._imagingcms import CmsProfile

__all__ = ["MOVING", "WHITE", "SRGBPicture", "frame_count", "is_animation", "to_srgb", "writable_formats"]

WHITE = (255, 255, 255)
GREY = ("1", "L", "LA", "La")
MOVING = ("AVIF", "GIF", "PNG", "WEBP")  # formats whose further pictures are an animation's
SEVERAL = (*MOVING, "MPO", "TIFF")  # formats that hold several pictures; Pillow also counts layers
SRGB_GAMMA = 0.45455  # in PNG's gAMA
MOST_PROFILE = 16 << 20  # bytes; those of printers have 2 MB
ORIENTATION, BITS, PHOTOMETRIC, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 274, 258, 262, 284, 338, 339  # tags of TIFF
SIGNED = 2  # of its sample formats
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what makes an array [H, W, ...] upright, by its orientation
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 3),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: np.rot90,
}


# Every 15th red, green and blue.
COLOURS = Image.fromarray(np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(-1, 18, 3))


@dataclass(frozen=True)
class SRGBPicture:
    """pixels: RGB, 8 bits a channel. alpha: what is opaque, mode L; None where all is. deep: float32 [H, W, 3] in
    [0, 1], where the file has more than 8 bits. notes: what was changed or left out, in words for people."""

    pixels: Image.Image
    alpha: Image.Image | None
    notes: tuple[str, ...]
    deep: np.ndarray | None = None


def to_srgb(
    file: Image.Image, matte: tuple[int, int, int] = WHITE, *, keep_alpha: bool = False, frames: bool = False
) -> SRGBPicture:
    """Bring the current frame of `file` to RGB. `matte`: what is behind transparent pixels, sRGB, 0 to 255. keep_alpha:
    only where nothing of a pixel is seen; the others keep their colours, to be used with `alpha`. frames: the others of
    an animation are used too, so that nothing is to be said.

    Colours are converted by the picture's profile, if it has one, to sRGB by littleCMS, relative colorimetric with
    black point compensation, as browsers and editors do. 16-bit RGB needs OpenCV, since Pillow cuts it to 8 bits.
    Raises ImageError for pixels in floats or 32 bits whose range is not known, and what decoders raise.
    """
    first, profile, mode = file.tell() == 0, file.info.get("icc_profile"), file.mode
    space = "GRAY" if mode in GREY or mode[0] in "IF" else mode if mode in ("CMYK", "LAB") else "RGB"
    deep, *notes = _deep(file)
    picture = ImageOps.exif_transpose(file)
    if deep is not None:
        deep = np.ascontiguousarray(TURNS.get(file.getexif().get(ORIENTATION, 1), lambda a: a)(deep))
        rounded = np.rint(deep * 255).astype(np.uint8)
        picture = Image.fromarray(rounded[..., 0] if rounded.shape[2] == 1 else rounded)
    alpha = None
    if picture.has_transparency_data or picture.mode in ("RGBa", "La"):
        straight = picture.convert("RGBA" if picture.mode != "La" else "LA").convert("RGBA")
        alpha, picture = straight.getchannel("A"), straight.convert("RGB")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    if profile:
        before = picture
        picture, note = _converted(picture, profile, space)
        if deep is not None and picture is not before:  # littleCMS has no more through Pillow
            deep, note = None, "its 16 bits are cut to 8, to convert its colours by its profile"
        notes.append(note)
    elif space == "CMYK":
        notes.append("its CMYK has no colour profile: its colours are a guess")
    elif not 0.44 < file.info.get("gamma", SRGB_GAMMA) < 0.47 and "srgb" not in file.info:
        notes.append(f"its gamma of {file.info['gamma']:g} is not heeded: its colours are taken for sRGB")
    picture = picture.convert("RGB")
    if deep is not None:
        deep = deep[..., :3] if deep.shape[2] > 2 else np.repeat(deep[..., :1], 3, axis=2)
    if alpha is not None:
        seen = alpha.point([0] + [255] * 255) if keep_alpha else alpha
        picture, deep = _laid_on(matte, picture, deep, seen)
        colour = "white" if matte == WHITE else f"rgb{matte}"
        notes.append(None if keep_alpha else f"what is transparent in it is laid on {colour}")
    if first and not frames:  # now that it is decoded: counting goes through the others, which may be damaged
        notes.append(_others(file))
    return SRGBPicture(picture, alpha, tuple(filter(None, notes)), deep)


def _laid_on(
    matte: tuple[int, int, int], picture: Image.Image, deep: np.ndarray | None, seen: Image.Image
) -> tuple[Image.Image, np.ndarray | None]:
    """Return RGB, and what it has of more bits, on a colour where it is not seen."""
    picture = Image.composite(picture, Image.new("RGB", picture.size, matte), seen)
    if deep is not None:
        share = np.asarray(seen, dtype=np.float32)[..., None] / 255
        deep = deep * share + np.array(matte, dtype=np.float32) / 255 * (1 - share)
    return picture, deep


def _others(file: Image.Image) -> str | None:
    """Return what to say of the pictures after a file's first."""
    try:
        count = frame_count(file)
    except Exception:  # decoders raise any type
        return "only its first frame is used: the others are damaged"
    return f"only the first of {count} frames is used" if count > 1 else None


def frame_count(file: Image.Image) -> int:
    """Return how many pictures a file holds: frames or pages, not layers. Raises what decoders raise."""
    return getattr(file, "n_frames", 1) if file.format in SEVERAL else 1


def writable_formats() -> dict[str, str]:
    """Return Pillow's name of the format for each ending, such as ".png", that it writes and we read."""
    known = {ending: Image.registered_extensions().get(ending) for ending in picture_endings()}
    return {ending: kind for ending, kind in known.items() if kind in Image.SAVE}


def is_animation(file: Image.Image) -> bool:
    """Whether the pictures of a file are shown one after the other."""
    return file.format in MOVING and frame_count(file) > 1


def _deep(file: Image.Image) -> tuple[np.ndarray | None, str | None]:
    """Return float32 [H, W, channels] in [0, 1] of a file of more than 8 bits, not upright yet, and what to say."""
    tags, fp = _tags(file), getattr(file, "fp", None)
    if file.mode[0] in "IF":  # grey, which Pillow reads whole
        return _deep_grey(file, tags), None
    if _bits(file) <= 8:
        return None, None
    cut = "its 16 bits are cut to 8"
    if tags.get(PLANAR, 1) != 1:  # Pillow and OpenCV read wrong numbers
        raise ImageError("its 16-bit channels are stored one after the other: store them pixel by pixel")
    if tags and (tags.get(PHOTOMETRIC) != 2 or any(sample != 2 for sample in tags.get(EXTRA_SAMPLES, ()))):
        return None, f"{cut}, since it is not RGB with or without alpha"
    try:
        import cv2
    except ImportError:
        return None, f"{cut} (pip install opencv-python-headless keeps them)"
    if fp is None or file.tell():
        return None, f"{cut}, since it is not a file's first picture, fresh from it"
    logs: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4.8 has it in the latter
    position, level = fp.tell(), logs.getLogLevel()
    fp.seek(0)
    try:
        logs.setLogLevel(0)  # silent
        array = cv2.imdecode(np.frombuffer(fp.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        logs.setLogLevel(level)
        fp.seek(position)
    if array is None or array.dtype != np.uint16 or sorted(array.shape[:2]) != sorted(file.size):
        return None, f"{cut}, since OpenCV does not read it"
    array = np.atleast_3d(array)
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(array.shape[2], slice(None))  # from BGR
    return array[..., order] / np.float32(65535), None


def _tags(file: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF; none of another file."""
    return getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}


def _deep_grey(file: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """Raises ImageError for pixels of no known range."""
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise ImageError("its whole numbers are signed, so that black and white are not known")
    most = 1.0 if file.mode == "F" else 2.0 ** min(16, max(tags.get(BITS, (16,)))) - 1
    values = np.asarray(file)
    grey = values.astype(np.float32)[..., None]
    low, high = (grey.min(), grey.max()) if grey.size else (0, 0)
    if not (low >= 0 and high <= most):
        raise ImageError(f"its values go from {low:g} to {high:g}, where 0 to {most:g} is black to white")
    grey = 1 - grey / np.float32(most) if tags.get(PHOTOMETRIC) == 0 else grey / np.float32(most)
    hidden = file.info.get("transparency")
    return grey if hidden is None else np.concatenate([grey, (values != hidden)[..., None]], axis=2, dtype=np.float32)


def _bits(file: Image.Image) -> int:
    """Return the bits of a channel of a file that is not decoded yet, where it can be told."""
    if file.format == "TIFF":
        return max(_tags(file).get(BITS, (8,)))
    for tile in getattr(file, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any("16" in one if isinstance(one, str) else isinstance(one, int) and one > 255 for one in arguments):
            return 16  # "RGB;16B", or the largest value in a PPM
    return 8


def _converted(picture: Image.Image, profile: bytes, space: str) -> tuple[Image.Image, str | None]:
    """Return the picture in sRGB, and why not where that can't be. space: the file's, as profiles call it."""
    failed = "its colour profile can't be used ({}): its colours are taken for sRGB"
    if len(profile) > MOST_PROFILE:
        return picture, failed.format("it is too large")
    try:
        from PIL import ImageCms

        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        of = cast("CmsProfile", source.profile).xcolor_space.strip()
        if of.upper() != space and (space, of) != ("GRAY", "RGB"):
            return picture, failed.format(f"it is for {of}, and the picture is {space}")
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}[of]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "RGB" and np.abs(np.asarray(transform.apply(COLOURS)).astype(int) - np.asarray(COLOURS)).max() <= 1:
            return picture, None  # it is sRGB's own, whatever its name: no rounding
        return transform.apply(picture if picture.mode == mode else picture.convert(mode)), None
    except Exception as error:  # Pillow without littleCMS, damaged profiles, spaces that no picture has
        return picture, failed.format(next(iter(str(error).strip().splitlines()), type(error).__name__))
