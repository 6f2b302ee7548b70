import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core import DCAE, DEMO, ImageError, images
from dcae_core.compare.metrics import psnr
from dcae_core.media.sizes import Fit


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_range_layout_and_channels(channels):
    host = torch.rand(2, 5, 7, channels)
    x = images.from_host(host)
    assert x.shape == (2, 3, 5, 7)
    colour = host[..., :3] if channels > 2 else host[..., :1].expand(-1, -1, -1, 3)
    assert torch.allclose(x.movedim(1, -1) / 2 + 0.5, colour)
    assert torch.allclose(images.to_host(x), colour, atol=1e-6)


def test_to_host_clamps_and_leaves_its_input():
    x = torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1)
    assert images.to_host(x).flatten().tolist() == [0.0, 0.5, 1.0]
    assert x.flatten().tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2, 5), (1, 1, 1, 1, 1)])
def test_wrong_shapes(shape):
    with pytest.raises(ImageError, match="shape"):
        images.from_host(torch.zeros(shape))


def test_wide_integers_are_refused_with_advice():
    with pytest.raises(ImageError, match="divide"):
        images.from_host(torch.zeros(1, 2, 2, 3, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_rounded_once(dtype):
    whole = torch.arange(256, dtype=torch.uint8)
    x = images.from_uint8(whole.to(dtype))
    assert torch.equal(x, (whole.double() / 127.5 - 1).to(dtype))
    if dtype == torch.float32:
        assert torch.equal(images.to_uint8(x[:, None]), whole[:, None])
    assert images.to_uint8(torch.tensor([[-9.0, -1, 0.001, 1, 9]]).to(dtype)).tolist() == [[0, 0, 128, 255, 255]]


def test_crop_mode_keeps_the_centre():
    x = torch.arange(36 * 34, dtype=torch.float32).view(1, 1, 36, 34)
    kept = images.fit(x, Fit(36, 34, 32, "crop"))
    assert torch.equal(kept, x[:, :, 2:34, 1:33])


def test_files_of_every_kind(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    picture.save(tmp_path / "rgb.png")
    assert torch.equal((images.read(tmp_path / "rgb.png")[0] * 255).round().byte(), torch.from_numpy(rgb))

    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("P").save(tmp_path / "palette.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "alpha.png", "palette.png", "cmyk.jpg", "deep.png"):
        read = images.read(tmp_path / name)
        assert read.shape == (1, 9, 13, 3), name
        assert read.min() >= 0 and read.max() <= 1, name
    assert torch.allclose(images.read(tmp_path / "deep.png")[0, ..., 0] * 255, torch.from_numpy(rgb[..., 0]).float())

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert images.read(tmp_path / "turned.jpg").shape == (1, 13, 9, 3)


def test_unreadable_pictures(tmp_path):
    with pytest.raises(ImageError, match="no picture at"):
        images.read(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match="can't be read"):
        images.read(tmp_path / "text.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:70])
    with pytest.raises(ImageError, match="can't be read"):
        images.read(tmp_path / "cut.png")


def test_writing(tmp_path):
    picture = torch.rand(6, 5, 3)
    images.write(tmp_path / "a.png", picture)
    assert (images.read(tmp_path / "a.png")[0] - picture).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ImageError, match="format"):
        images.write(tmp_path / "a.xyz", picture)
    with pytest.raises(ImageError, match="can't be written"):
        images.write(tmp_path / "absent" / "a.png", picture)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_sides_that_a_format_can_not_have(tmp_path):
    for ending in (".gif", ".tga", ".pcx", ".sgi"):
        with pytest.raises(ImageError, match="can't be written"):
            images.write(tmp_path / f"x{ending}", torch.zeros(1, 70_000, 3))
    assert list(tmp_path.iterdir()) == []


def test_padding_makes_no_giant_of_a_thin_picture():
    thin = torch.zeros(1, 1, 1, 1).expand(1, 3, 1, 5_000_000)
    with pytest.raises(ImageError, match="A picture of 5000000x1 would be padded to 5000064x128"):
        images.fit(thin, Fit(1, 5_000_000, 128))
    assert images.fit(thin, Fit(1, 1_000, 128)).shape == (1, 3, 128, 1_024)


def test_psnr_is_scikit_images():
    from skimage.metrics import peak_signal_noise_ratio

    a, b = torch.rand(1, 20, 20, 3), torch.rand(1, 20, 20, 3)
    eight = [(t * 255).round().byte().numpy() for t in (a, b)]
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(*eight), abs=1e-6)
    assert psnr(a, a) == float("inf")


@pytest.fixture(scope="module")
def ae() -> DCAE:
    return DCAE(DEMO, "cpu", torch.float32)


def test_what_encode_takes_for_a_picture(ae, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    wanted = ae.encode(torch.from_numpy(pixels).movedim(-1, 0)[None])
    Image.fromarray(pixels).save(path := tmp_path / "picture.png")
    for given in (path, str(path), Image.fromarray(pixels), pixels, pixels[None], torch.from_numpy(pixels)):
        assert torch.allclose(ae.encode(given), wanted, atol=1e-5), type(given)
    assert torch.allclose(ae.encode([path, pixels]), wanted.expand(2, -1, -1, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.zeros((64, 64, 3)), "ndarray of float64"),
        ([np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)], "encode them one by one"),
        ({"image": 1}, "dict"),
        (None, "NoneType"),
        ([], "list"),
        (torch.rand(64, 64, 3), "needed are floats"),
        (torch.rand(1, 3, 64, 64) * 255, "x / 127.5 - 1"),
    ],
)
def test_what_it_does_not(ae, given, match):
    with pytest.raises(ImageError, match=match):
        ae.encode(given)


def test_a_picture_that_may_be_in_0_to_1_is_said_once(ae, caplog):
    images._warn_of_positive.cache_clear()
    ae.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    ae.encode(torch.zeros(1, 3, 64, 64))  # grey
    assert not caplog.messages
    for _ in range(2):
        ae.encode(torch.rand(1, 3, 64, 64))
    assert len(caplog.messages) == 1 and "2 * x - 1" in caplog.messages[0]
