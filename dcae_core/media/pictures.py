"""Bring any picture that Pillow opens to upright 8-bit sRGB, and say what that took: colour profiles, transparency,
animations, more than 8 bits. Without torch, since processes that prepare data sets use it too."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

__all__ = ["WHITE", "SRGBPicture", "to_srgb"]

WHITE = (255, 255, 255)
MOST_PROFILE = 16 << 20  # bytes; those of printers have 2 MB


@dataclass(frozen=True)
class SRGBPicture:
    """pixels: RGB, composited on the matte where it was transparent. alpha: what was opaque, mode L; None where all is.
    notes: what was changed or left out, in words for people."""

    pixels: Image.Image
    alpha: Image.Image | None
    notes: tuple[str, ...]


def to_srgb(file: Image.Image, matte: tuple[int, int, int] = WHITE) -> SRGBPicture:
    """Bring the current frame of `file` to RGB. `matte`: what is behind transparent pixels, sRGB, 0 to 255.

    Colours are converted by the picture's profile, if it has one, to sRGB by littleCMS, relative colorimetric with
    black point compensation, as browsers and editors do. Raises ValueError for floating-point pixels, whose range is
    unknown, and what decoders raise.
    """
    notes = []
    if (frames := getattr(file, "n_frames", 1)) > 1:
        notes.append(f"only the first of {frames} frames is used")
    profile = file.info.get("icc_profile")
    picture = ImageOps.exif_transpose(file)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow has no 16-bit RGB
        grey = np.asarray(picture).astype(np.float32) / 257
        picture = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    alpha = None
    if picture.has_transparency_data or picture.mode in ("RGBa", "La"):
        straight = picture.convert("RGBA" if picture.mode != "La" else "LA").convert("RGBA")
        alpha, picture = straight.getchannel("A"), straight.convert("RGB")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    if profile:
        picture, note = _converted(picture, profile)
        notes += [note] if note else []
    elif picture.mode == "CMYK":
        notes.append("its CMYK has no colour profile: its colours are a guess")
    picture = picture.convert("RGB")
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, matte), alpha)
        colour = "white" if matte == WHITE else f"rgb{matte}"
        notes.append(f"what is transparent in it is laid on {colour}")
    return SRGBPicture(picture, alpha, tuple(notes))


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
