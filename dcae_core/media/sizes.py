"""Geometry of pictures whose sides are not multiples of the ratio. Plain arithmetic, no torch: `images` moves the
pixels."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ImageError

__all__ = ["MODES", "Fit"]

MODES = ("pad", "crop")


@dataclass(frozen=True)
class Fit:
    """How a picture of `height` x `width` pixels is padded or cropped to whole latent pixels of `ratio` x `ratio`.

    mode "pad": rows are added at the bottom and columns at the right (by repeating the edge), to be cut off after
    decoding. mode "crop": the centre is kept, as ComfyUI does, and the rest is lost.
    Raises ImageError for a picture without pixels, and for one that cropping would leave empty.
    """

    height: int
    width: int
    ratio: int
    mode: str = "pad"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ImageError(f"size mode {self.mode!r} is not known: use one of {', '.join(MODES)}.")
        if self.height < 1 or self.width < 1:
            raise ImageError(f"The picture is {self.width}x{self.height}: it has no pixels.")
        if self.mode == "crop" and min(self.height, self.width) < self.ratio:
            raise ImageError(
                f"The picture is {self.width}x{self.height} pixels, smaller than one latent pixel of "
                f"{self.ratio}x{self.ratio}, so cropping leaves nothing. Use size mode 'pad', a larger picture, "
                "or a variant with a smaller ratio."
            )

    @property
    def latent(self) -> tuple[int, int]:
        """Rows and columns of the latent."""
        up = self.ratio - 1 if self.mode == "pad" else 0
        return (self.height + up) // self.ratio, (self.width + up) // self.ratio

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width that the model sees."""
        return self.latent[0] * self.ratio, self.latent[1] * self.ratio

    @property
    def offset(self) -> tuple[int, int]:
        """Top and left of the part that is kept when cropping; (0, 0) when padding."""
        return max(0, self.height - self.padded[0]) // 2, max(0, self.width - self.padded[1]) // 2

    @property
    def rows(self) -> slice:
        """Those of the picture that are kept."""
        return slice(self.offset[0], self.offset[0] + self.true[0])

    @property
    def columns(self) -> slice:
        """Those of the picture that are kept."""
        return slice(self.offset[1], self.offset[1] + self.true[1])

    @property
    def true(self) -> tuple[int, int]:
        """Height and width of the picture that comes back."""
        return min(self.height, self.padded[0]), min(self.width, self.padded[1])
