"""The errors that this package raises on purpose. Each message says what was given, what is needed and what to do
next."""

__all__ = [
    "AmbiguousVariant",
    "BudgetError",
    "CheckpointError",
    "DCAEError",
    "DownloadError",
    "ImageError",
    "LatentError",
    "OptionError",
    "UnknownVariant",
    "escape_unprintable",
]


def escape_unprintable(text: str) -> str:
    """`text` with what is not printable escaped: line ends, what drives a terminal, what can't be encoded."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class DCAEError(Exception):
    """Anything a user can put right. The command line prints it as one line and exits with 1.

    Its text is one line whatever was put into it: names from files may hold line ends, or what drives a terminal.
    """

    def __str__(self) -> str:
        return escape_unprintable(super().__str__())


class OptionError(DCAEError, ValueError):
    """A device, dtype or output that can't be had."""


class BudgetError(OptionError):
    """A memory budget that is too small; `needed` is the smallest that would do, in bytes (0: not known)."""

    def __init__(self, message: str, needed: int = 0):
        super().__init__(message)
        self.needed = needed


class UnknownVariant(DCAEError, ValueError):
    """A variant name that is not in the table."""


class CheckpointError(DCAEError):
    """A file that is not a DC-AE, is damaged, or can't be told apart from another variant."""


class AmbiguousVariant(CheckpointError):
    """A DC-AE that nothing tells apart from another variant, but perhaps the size of its latents."""


class DownloadError(DCAEError):
    """A download that was not allowed, did not arrive, or arrived wrong."""


class ImageError(DCAEError, ValueError):
    """A picture of a shape, range or size that can't be encoded."""


class LatentError(DCAEError, ValueError):
    """A latent that does not belong to this autoencoder."""
