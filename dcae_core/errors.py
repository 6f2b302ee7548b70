"""The errors of this package. Each message says what was given, what is needed and what to do next."""

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
    "counted",
    "escape_unprintable",
]


def escape_unprintable(text: str) -> str:
    """Return `text` with unprintable characters escaped: line ends, control characters, surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(number: int, noun: str) -> str:
    """Return "1 strip", "2 strips" and so on."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class DCAEError(Exception):
    """An error that the user can fix. The command line prints it as one line and exits with 1.

    Its text is always one printable line, even if a name from a file in it holds line ends or control characters.
    """

    def __str__(self) -> str:
        return escape_unprintable(super().__str__())


class OptionError(DCAEError, ValueError):
    """An option, such as a device, dtype or output, that is not available or not valid."""


class BudgetError(OptionError):
    """A memory budget that is too small; `needed` is the smallest sufficient one in bytes (0: unknown)."""

    def __init__(self, message: str, needed: int = 0):
        super().__init__(message)
        self.needed = needed


class UnknownVariant(DCAEError, ValueError):
    """A variant name that is not in the table."""


class CheckpointError(DCAEError):
    """A file that is not a DC-AE, is damaged, or may be of several variants."""


class AmbiguousVariant(CheckpointError):
    """A DC-AE that may be of several variants and that nothing names. `infer_variant` may recognise it."""


class DownloadError(DCAEError):
    """A download that was not allowed, failed, or was damaged."""


class ImageError(DCAEError, ValueError):
    """A picture that can't be read, written or encoded."""


class LatentError(DCAEError, ValueError):
    """A latent that is damaged or does not fit this autoencoder."""
