"""Each score against an independent computation, on photographs."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy
import skimage.data
import torch
import torch_fidelity.feature_extractor_inceptionv3 as inception
import torchmetrics
import torchvision
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F

from dcae_core import DCAE, DEMO, images, metrics
from dcae_core.compare.run import resized
from dcae_core.errors import ImageError, OptionError
from dcae_core.files import ASSETS

BOUND = 1e-4
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left.png", "example.jpg")
SIZES = [(96, 96), (192, 257), (320, 320)]  # height, width
HERE = ASSETS


def photograph(name: str, height: int, width: int) -> torch.Tensor:
    """Real pictures that come with scikit-image, and ours."""
    if "." not in name:
        picture = images.from_pil(Image.fromarray(getattr(skimage.data, name)()))
    else:
        folder = HERE if name == "example.jpg" else Path(skimage.data.__file__).parent
        picture = images.read(folder / name)[0]
    return resized(picture, (height, width))


def noisy(picture: torch.Tensor, spread: float) -> torch.Tensor:
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    return (picture + noise * spread).clamp(0, 1)


def as_jpeg(picture: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(in_bytes(picture)).save(file, "JPEG", quality=20)
    return images.from_pil(Image.open(file))


def in_bytes(picture: torch.Tensor) -> np.ndarray:
    """As a file would have it."""
    return np.rint(picture.numpy() * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def demo() -> DCAE:
    return DCAE(DEMO, device="cpu", dtype="fp32")


def through(ae: DCAE, picture: torch.Tensor) -> torch.Tensor:
    x = images.from_host(picture)
    return images.to_host(ae.decode(ae.encode(x), tuple(x.shape[2:])))[0]


def ssim_means(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each channel, means of SSIM and of its contrast and structure alone, where the window fits in."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(x: np.ndarray) -> np.ndarray:
        x = scipy.ndimage.correlate1d(scipy.ndimage.correlate1d(x, window, axis=0), window, axis=1)
        return x[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    contrast = (2 * (blurred(a * b) - mean_a * mean_b) + c2) / (var_a + var_b + c2)
    whole = contrast * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return whole.mean((0, 1)), contrast.mean((0, 1))


def middle(x: np.ndarray) -> np.ndarray:
    """What can be halved four times."""
    rows, columns = (side % 16 for side in x.shape[:2])
    return x[rows // 2 : x.shape[0] - (rows + 1) // 2, columns // 2 : x.shape[1] - (columns + 1) // 2]


def halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang, Simoncelli and Bovik 2003, for each channel, and the mean over them."""
    a, b, value = middle(a).astype(float), middle(b).astype(float), 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363):
        value = value * np.maximum(ssim_means(a, b)[1], 0) ** weight
        a, b = halved(a), halved(b)
    return (value * np.maximum(ssim_means(a, b)[0], 0) ** 0.1333).mean()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_scores_are_those_of_scikit_image_and_of_the_definition(name, size, demo):
    original = photograph(name, *size)
    for result in (through(demo, original), as_jpeg(original), noisy(original, 0.2)):
        a, b = in_bytes(original), in_bytes(result)
        ours = metrics.scores(original, result)
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert ours.psnr == pytest.approx(peak_signal_noise_ratio(a, b), abs=BOUND)
        assert metrics.psnr(original, result) == ours.psnr
        assert ours.mse == pytest.approx(mean_squared_error(a, b), abs=BOUND)
        assert ours.mae == pytest.approx(np.abs(a.astype(int) - b).mean(), abs=BOUND)
        ssim = structural_similarity(a, b, data_range=255, channel_axis=2, **gaussian)
        assert ours.ssim == pytest.approx(ssim, abs=BOUND)
        if size[0] > 160:
            assert ours.ms_ssim == pytest.approx(ms_ssim(a, b), abs=BOUND)
        else:
            assert ours.ms_ssim is None
        assert ours.lpips is None


def test_equal_pictures():
    picture = photograph("chelsea", 192, 192)
    same = metrics.scores(picture, picture.clone())
    assert (same.psnr, same.mse, same.mae) == (float("inf"), 0, 0)
    assert (same.ssim, same.ms_ssim) == pytest.approx((1, 1), abs=1e-6)


def test_pictures_that_are_too_small_have_no_such_score():
    for side, has_ssim, has_ms_ssim in ((10, False, False), (11, True, False), (175, True, False), (176, True, True)):
        picture = photograph("coffee", side, 190)
        found = metrics.scores(picture, as_jpeg(picture))
        assert (found.ssim is not None, found.ms_ssim is not None) == (has_ssim, has_ms_ssim)
        assert found.psnr > 0


def test_two_sizes_can_not_be_compared():
    with pytest.raises(ImageError, match="can't be compared"):
        metrics.scores(torch.zeros(16, 16, 3), torch.zeros(16, 17, 3))


@pytest.fixture
def torch_home(tmp_path, monkeypatch) -> Path:
    """Where torch.hub keeps weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True)
    assert folder.is_relative_to(tmp_path)
    return folder


def spread(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights that keep the scale of what goes through; what no score uses takes no room in a file."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict(keep_vars=True).items():
        if value.ndim == 4:
            value.data.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.startswith(("classifier", "fc")):
            value.data = torch.zeros(1).expand(value.shape)
    return network


@pytest.fixture
def alexnet(torch_home) -> torch.nn.Module:
    with torch.device("meta"):
        network = torchvision.models.alexnet()
    network = spread(network.to_empty(device="cpu")).eval()
    for layer in network.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias.data.zero_()
    torch.save(network.state_dict(), torch_home / "alexnet-owt-7be5be79.pth")
    return network


def test_lpips_is_that_of_its_paper(alexnet):
    """Zhang et al. 2018: squared differences of features of unit length, weighted by channel, means over places, sum
    over five layers."""
    file = Path(torchmetrics.functional.image.lpips.__file__).parent / "lpips_models" / "alex.pth"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)

    def features(picture: torch.Tensor) -> list[torch.Tensor]:
        x, found = (torch.from_numpy(in_bytes(picture)).permute(2, 0, 1)[None] / 127.5 - 1 - shift) / scale, []
        for layer in alexnet.features:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                x = x.clone()  # the next one may work in place
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    distance = metrics.lpips()
    for name, size in zip(PHOTOGRAPHS, [(96, 96), (192, 257), (64, 320)] * 2, strict=True):
        original = photograph(name, *size)
        for result in (as_jpeg(original), noisy(original, 0.1)):
            with torch.no_grad():
                pairs = enumerate(zip(features(original), features(result), strict=True))
                parts = [F.conv2d((a - b) ** 2, weights[f"lin{i}.model.1.weight"]).mean() for i, (a, b) in pairs]
            expected = torch.stack(parts).sum().item()
            assert len(parts) == 5 and expected > 1e-3
            assert metrics.scores(original, result, distance).lpips == pytest.approx(expected, rel=BOUND)
    assert metrics.scores(original, original, distance).lpips == 0
    small = photograph("coffee", 31, 64)
    assert metrics.scores(small, as_jpeg(small), distance).lpips is None


@pytest.fixture
def network(torch_home, monkeypatch) -> torch.nn.Module:
    """torch-fidelity's Inception with random weights, whose file is in place."""
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    made = spread(inception.FeatureExtractorInceptionV3("", ["2048"]))
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(torch_home.parents[1]))
    file = torch_home / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(made.state_dict(), file)
    yield made
    file.unlink()  # 90 MB


def test_rfid_is_the_frechet_distance_of_inceptions_features(network, monkeypatch):
    """With 2048 features and 8 pictures both covariances have rank 7, and scipy's root of their product, which is
    singular, is good to three digits only (and takes a minute). In the space that the features of 8 pictures span, less
    their mean, the product has the same trace and a root that is well conditioned; so 1e-4 can be asked for."""
    sizes = [(96, 96), (256, 256), (299, 299), (128, 200), (400, 320), (64, 48), (299, 180), (512, 340)]
    originals = [photograph(PHOTOGRAPHS[i % 6], *size) for i, size in enumerate(sizes)]
    results = [noisy(picture, 0.05 + 0.01 * i) for i, picture in enumerate(originals)]
    make = metrics.frechet()
    distance = make()
    distance.add(originals[0], results[0])
    assert distance.distance() is None
    for pair in zip(originals[1:], results[1:], strict=True):
        distance.add(*pair)

    # Its own forward with the resizing of the paper's evaluator (pytorch-fid's), in place of TensorFlow's.
    monkeypatch.setattr(inception, "interpolate_bilinear_2d_like_tensorflow1x", as_the_evaluator_does)
    features = []
    for some in (originals, results):
        each = [network(torch.from_numpy(in_bytes(x)).permute(2, 0, 1)[None])[0] for x in some]
        features.append(torch.cat(each).double().numpy())
    a, b = (scipy.linalg.helmert(8) @ x / np.sqrt(7) for x in features)  # a'a and b'b are the covariances
    root = scipy.linalg.sqrtm(a @ b.T @ b @ a.T)
    mean = ((features[0].mean(0) - features[1].mean(0)) ** 2).sum()
    covariances = np.trace(np.cov(features[0].T)) + np.trace(np.cov(features[1].T))
    expected = mean + covariances - 2 * np.trace(root).real
    assert distance.distance() == pytest.approx(expected, rel=BOUND)
    assert 0.01 * covariances < expected < covariances
    assert make().distance() is None, "a new one begins with nothing"


def test_rfid_of_equal_sets_is_nothing_and_of_shifted_ones_the_shift():
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1))
    same, shifted = metrics.Frechet(network), metrics.Frechet(network)
    for name in PHOTOGRAPHS:
        picture = photograph(name, 96, 96) * 0.5
        same.add(picture, picture)
        shifted.add(picture, picture + torch.tensor([0, 51, 102]) / 255)
    assert same.distance() == pytest.approx(0, abs=1e-9)
    assert shifted.distance() == pytest.approx(0.4**2 + 0.8**2, abs=1e-2)  # a unit is half the range


def as_the_evaluator_does(x: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    return F.interpolate(x / 127.5 - 1, size, mode="bilinear", align_corners=False) * 128 + 128


WEIGHTS = {
    "LPIPS": (metrics.lpips, "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "rFID": (metrics.frechet, inception.URL_INCEPTION_V3),
}


@pytest.mark.parametrize("score", WEIGHTS)
def test_weights_that_are_not_here_are_named_with_their_address(score, torch_home):
    make, address = WEIGHTS[score]
    with pytest.raises(OptionError) as error:
        make()
    assert score in str(error.value) and address in str(error.value)
    assert address.rsplit("/", 1)[-1] in str(error.value) and str(torch_home) in str(error.value)
    assert not any(torch_home.iterdir())


class Evil:
    """What a pickle may hold: a call of any function. This one makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("score", WEIGHTS)
@pytest.mark.parametrize("form", ["torch.save", "pickle", "among weights"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(score, form, torch_home, tmp_path, monkeypatch):
    make, address = WEIGHTS[score]
    marker, file = tmp_path / "it-ran", torch_home / address.rsplit("/", 1)[-1]
    evil = {"features.0.weight": torch.zeros(2), "more": Evil(marker)} if form == "among weights" else Evil(marker)
    if form == "pickle":
        file.write_bytes(pickle.dumps(evil, protocol=2))
        pickle.loads(file.read_bytes())
    else:
        torch.save(evil, file)
        torch.load(file, weights_only=False)
    assert marker.is_dir(), "the file is harmless: this tests nothing"
    marker.rmdir()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with pytest.raises(OptionError, match="more than weights") as error:
        make()
    assert str(file) in str(error.value)
    assert not marker.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("score", WEIGHTS)
def test_weights_of_something_else_are_refused(score, torch_home):
    make, address = WEIGHTS[score]
    file = torch_home / address.rsplit("/", 1)[-1]
    for content in ({"layer.weight": torch.zeros(2)}, torch.zeros(2)):
        torch.save(content, file)
        with pytest.raises(OptionError, match="can't read"):
            make()
    for damaged in (b"", b"PK\x03\x04 cut off", b"<html>not found</html>"):
        file.write_bytes(damaged)
        with pytest.raises(OptionError, match="can't read"):
            make()
