"""Measure how close a reconstruction is, by the protocol of the DC-AE paper (efficientvit's aecore/evaluator.py):
pictures are rounded to 8 bits and scored one at a time; a set gets the mean.

SSIM and MS-SSIM leave out the border, where their window would stick out, as their authors' code and scikit-image do:
pytorch-msssim does so; torchmetrics fills the border in, which on small pictures changes the third digit.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ImageError, OptionError

__all__ = ["Frechet", "Perceptual", "Scores", "frechet", "lpips", "psnr", "scores"]

LEAST_SSIM, LEAST_MS_SSIM, LEAST_LPIPS = 11, 176, 32  # shorter side, in pixels
HALVED = 16  # MS-SSIM halves a picture four times
Perceptual = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Scores:
    """One picture's scores. psnr: dB, infinite for equal pictures. ssim, ms_ssim: 1 for equal pictures. mse and mae: in
    steps of 8 bits (0 to 255, squared for mse). lpips: 0 for equal pictures. None where the picture is too small, or
    for lpips where its weights are not here."""

    psnr: float
    ssim: float | None
    ms_ssim: float | None
    mse: float
    mae: float
    lpips: float | None = None


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB between two pictures in [0, 1], after rounding both to 8 bits as saving does."""
    return _decibels(_steps(a, b).square().mean().item())


def scores(original: Tensor, result: Tensor, perceptual: Perceptual | None = None) -> Scores:
    """Scores of `result` against `original`, both [H, W, 3] in [0, 1] and of one size; `perceptual` is what `lpips`
    returned.

    SSIM (Wang et al. 2004) with its Gaussian window of 11 pixels and sigma 1.5, MS-SSIM (Wang et al. 2003) with its
    five scales, of the middle whose sides are multiples of 16 (pytorch-msssim halves odd sides with a row of zeros,
    which on photographs changes the third digit); both are means over the channels. Raises ImageError for pictures of
    two sizes.
    """
    try:
        from pytorch_msssim import ms_ssim, ssim
    except ImportError as error:
        raise OptionError(f"Scores need pytorch-msssim: pip install pytorch-msssim ({error}).") from error
    if original.shape != result.shape:
        raise ImageError(f"Pictures of {list(original.shape)} and {list(result.shape)} can't be compared.")
    difference = _steps(original, result)
    mse = difference.square().mean().item()
    shortest = min(original.shape[:2])
    a, b = (_bytes(x).movedim(-1, 0)[None].float() for x in (original, result))
    return Scores(
        psnr=_decibels(mse),
        ssim=ssim(a, b, data_range=255).item() if shortest >= LEAST_SSIM else None,
        ms_ssim=ms_ssim(_middle(a), _middle(b), data_range=255).item() if shortest >= LEAST_MS_SSIM else None,
        mse=mse,
        mae=difference.abs().mean().item(),
        lpips=perceptual(original, result) if perceptual and shortest >= LEAST_LPIPS else None,
    )


def lpips(download: bool = False) -> Perceptual:
    """Return LPIPS (Zhang et al. 2018, AlexNet), by torchmetrics and torchvision, as a function of two pictures.

    Raises OptionError, which says what is missing, where a package or AlexNet's weights are not on this machine and
    `download` does not allow to fetch them, and where the weights can't be read.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another torch
        raise OptionError(
            f"LPIPS needs torchmetrics and torchvision, which can't be imported ({error}): "
            "pip install torchmetrics torchvision"
        ) from error
    path = _weights("LPIPS", AlexNet_Weights.DEFAULT.url, download)
    with _reading("LPIPS", path):
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def distance(a: Tensor, b: Tensor) -> float:
        with torch.no_grad():
            return network(*(_bytes(x).movedim(-1, 0)[None].float() / 255 for x in (a, b))).item()

    return distance


class Frechet:
    """rFID: the Fréchet distance (Heusel et al. 2017) between Inception features of originals and of reconstructions.

    Means something over a set only: published figures are over 5,000 pictures and more. Keeps 16 kB for each pair.
    """

    def __init__(self, network: nn.Module):
        """network: from pictures in [-1, 1] of 299x299 pixels to their features [B, 2048, 1, 1]."""
        self._network = network
        self._features: tuple[list[Tensor], list[Tensor]] = [], []

    @property
    def count(self) -> int:
        return len(self._features[0])

    def add(self, original: Tensor, result: Tensor) -> None:
        """One pair of pictures [H, W, 3] in [0, 1]."""
        for picture, features in zip((original, result), self._features, strict=True):
            x = _bytes(picture).movedim(-1, 0)[None].float() / 127.5 - 1
            with torch.no_grad():
                features.append(self._network(F.interpolate(x, (299, 299), mode="bilinear")).flatten())

    def distance(self) -> float | None:
        """Over what was added; None over fewer than two pairs."""
        if self.count < 2:
            return None
        sets = [torch.stack(features).double() for features in self._features]
        means = [x.mean(0) for x in sets]
        roots = [(x - mean) / (self.count - 1) ** 0.5 for x, mean in zip(sets, means, strict=True)]
        # A covariance is root' root. The trace of the square root of the product of two covariances is the sum of the
        # singular values of root root', which takes no square root of a singular matrix, and is quick for few pictures.
        small = [torch.linalg.qr(root, mode="r").R for root in roots]
        overlap = torch.linalg.svdvals(small[0] @ small[1].T).sum()
        spread = roots[0].square().sum() + roots[1].square().sum()
        return max(0.0, ((means[0] - means[1]).square().sum() + spread - 2 * overlap).item())


def frechet(download: bool = False) -> Callable[[], Frechet]:
    """Return a function that makes a new Frechet at each call, with Inception by torch-fidelity. Raises OptionError if
    something is missing or the weights can't be read."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        raise OptionError(
            f"rFID needs torch-fidelity and torchvision, which can't be imported ({error}): "
            "pip install torch-fidelity torchvision"
        ) from error
    path = _weights("rFID", URL_INCEPTION_V3, download)
    with _reading("rFID", path):
        whole = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    # Its own resizing is TensorFlow's, not that of the paper's evaluator. Its layers but the last follow one another.
    network = nn.Sequential(*list(whole.children())[:-1])
    return lambda: Frechet(network)


def _weights(what: str, url: str, download: bool) -> Path:
    """Where torch keeps the file of this address; fetched if it is not there and that is allowed."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    if not path.is_file():
        if not download:
            raise OptionError(
                f"{what} needs {path.name}, which is not in {path.parent}: allow downloads (--download), or get it "
                f"from {url}."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The name ends in the first digits of the file's sha256, which is checked.
            torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[-1])
        except (OSError, RuntimeError) as error:
            raise OptionError(f"{what} needs {url}, which could not be fetched: {error}.") from error
    return path


@contextlib.contextmanager
def _reading(what: str, path: Path) -> Generator[None]:
    """Libraries that load old-style files (pickles) run no code from them. Raises OptionError for what is none."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    except Exception as error:  # a file that is damaged, or another, makes torch raise one of many kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):  # torch's message is about how to run it all the same
            reason = "it is damaged, or holds more than weights."
        raise OptionError(f"{what} can't read {path}: {reason}") from error
    finally:
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _bytes(picture: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded to the nearest."""
    return (picture.detach().cpu().float() * 255).round().clamp(0, 255).to(torch.uint8)


def _middle(x: Tensor) -> Tensor:
    """[B, C, H, W] without the fewest rows and columns that leave multiples of HALVED."""
    over = [side % HALVED for side in x.shape[2:]]
    top, left = (side // 2 for side in over)
    return x[:, :, top : x.shape[2] - over[0] + top, left : x.shape[3] - over[1] + left]


def _steps(a: Tensor, b: Tensor) -> Tensor:
    return _bytes(a).double() - _bytes(b).double()


def _decibels(mse: float) -> float:
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)
