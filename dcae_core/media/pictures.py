"""Bring any picture that Pillow opens to upright sRGB, and say what that took: colour profiles, transparency,
animations, more than 8 bits. Without torch, since processes that prepare data sets use it too."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

__all__ = ["WHITE", "SRGBPicture", "to_srgb"]

WHITE = (255, 255, 255)
MOST_PROFILE = 16 << 20  # bytes; those of printers have 2 MB
ORIENTATION = 274  # the tag of EXIF and TIFF
TURNS = {  # what makes an array [H, W, ...] upright, by its orientation
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 3),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: np.rot90,
}


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
    Raises ValueError for pixels in floats or 32 bits whose range is not known, and what decoders raise.
    """
    notes = []
    if (count := getattr(file, "n_frames", 1)) > 1 and not frames:
        notes.append(f"only the first of {count} frames is used")
    profile = file.info.get("icc_profile")
    deep, note = _deep(file)
    notes += [note] if note else []
    picture = ImageOps.exif_transpose(file)
    if deep is not None:
        deep = np.ascontiguousarray(TURNS.get(file.getexif().get(ORIENTATION), lambda a: a)(deep))
        rounded = np.rint(deep * 255).astype(np.uint8)
        picture = Image.fromarray(rounded[..., 0] if rounded.shape[2] == 1 else rounded)
    alpha = None
    if picture.has_transparency_data or picture.mode in ("RGBa", "La"):
        straight = picture.convert("RGBA" if picture.mode != "La" else "LA").convert("RGBA")
        alpha, picture = straight.getchannel("A"), straight.convert("RGB")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    if profile:
        before = picture
        picture, note = _converted(picture, profile)
        if deep is not None and picture is not before:  # littleCMS has no more through Pillow
            deep, note = None, "its 16 bits are cut to 8, to convert its colours by its profile"
        notes += [note] if note else []
    elif picture.mode == "CMYK":
        notes.append("its CMYK has no colour profile: its colours are a guess")
    picture = picture.convert("RGB")
    if deep is not None:
        deep = deep[..., :3] if deep.shape[2] > 2 else np.repeat(deep[..., :1], 3, axis=2)
    if alpha is not None:
        seen = alpha.point(lambda value: 255 * (value > 0)) if keep_alpha else alpha
        picture = Image.composite(picture, Image.new("RGB", picture.size, matte), seen)
        if deep is not None:
            share = np.asarray(seen, dtype=np.float32)[..., None] / 255
            deep = deep * share + np.array(matte, dtype=np.float32) / 255 * (1 - share)
        colour = "white" if matte == WHITE else f"rgb{matte}"
        notes += [] if keep_alpha else [f"what is transparent in it is laid on {colour}"]
    return SRGBPicture(picture, alpha, tuple(notes), deep)


def _deep(file: Image.Image) -> tuple[np.ndarray | None, str | None]:
    """Return float32 [H, W, channels] in [0, 1] of a file of more than 8 bits, not upright yet, and what to say."""
    if file.mode == "F" or file.mode.startswith("I"):  # grey, which Pillow reads whole
        grey = np.asarray(file).astype(np.float32)[..., None]
        most = 65535.0 if file.mode != "F" else 1.0
        low, high = (grey.min(), grey.max()) if grey.size else (0, 0)
        if not (low >= 0 and high <= most):
            raise ValueError(f"its values go from {low:g} to {high:g}, where 0 to {most:g} is black to white")
        return grey / most, None
    if _bits(file) <= 8:
        return None, None
    try:
        import cv2
    except ImportError:
        return None, "its 16 bits are cut to 8 (pip install opencv-python-headless keeps them)"
    position = file.fp.tell()
    file.fp.seek(0)
    array = cv2.imdecode(np.frombuffer(file.fp.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    file.fp.seek(position)
    if file.tell() or array is None or array.dtype != np.uint16 or array.shape[1::-1] != file.size:
        return None, "its 16 bits are cut to 8, since OpenCV does not read it"
    array = np.atleast_3d(array)
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(array.shape[2], slice(None))  # from BGR
    return array[..., order] / np.float32(65535), None


def _bits(file: Image.Image) -> int:
    """Return the bits of a channel, of a PNG or TIFF that is not decoded yet."""
    if file.format == "TIFF":
        return max(file.tag_v2.get(258, (8,)))  # BitsPerSample
    return 16 if file.format == "PNG" and any("16" in str(tile[3]) for tile in file.tile) else 8


def _converted(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """Return the picture in sRGB, and why not where that can't be."""
    failed = "its colour profile can't be used ({}): its colours are taken for sRGB"
    if len(profile) > MOST_PROFILE:
        return picture, failed.format("it is too large")
    try:
        from PIL import ImageCms

        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return picture, None
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}[space]
        converted = ImageCms.profileToProfile(
            picture if picture.mode == mode else picture.convert(mode),
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return converted, None
    except Exception as error:  # Pillow without littleCMS, damaged profiles, spaces that no picture has
        return picture, failed.format(next(iter(str(error).strip().splitlines()), type(error).__name__))
