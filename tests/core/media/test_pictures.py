"""Whatever Pillow opens becomes the sRGB that a browser shows, and what is left out is said."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core import images
from dcae_core.batch.prepare import Geometry, Unreadable, prepare
from dcae_core.batch.sources import Item
from dcae_core.media.pictures import to_srgb
from dcae_core.untrusted import open_image

# Columns: XYZ of red, green and blue, adapted to D50. Source: the ICC profiles of Display P3 and Adobe RGB (1998).
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def profile(primaries, gamma: float, space: bytes = b"RGB ") -> bytes:
    """An ICC profile, version 2, of three primaries and one gamma."""
    number = lambda value: struct.pack(">i", round(value * 65536))  # noqa: E731
    xyz = lambda values: b"XYZ \0\0\0\0" + b"".join(map(number, values))  # noqa: E731
    name = b"made for a test\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78), b"cprt": b"text\0\0\0\0none\0"}
    tags[b"wtpt"] = xyz((0.9642, 1.0, 0.8249))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    for letter, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"], tags[bytes([letter]) + b"TRC"] = xyz(primary), curve
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", at + len(data), len(content))
        data += content
    header = struct.pack(">I4xI4s4s4s12x4s", at + len(data), 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    header += bytes(28) + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + table + data


def in_srgb(pixels: np.ndarray, primaries, gamma: float) -> np.ndarray:
    """What colours of such a profile are in sRGB, 0 to 255, cut off where it has none."""
    linear = (pixels / 255.0) ** gamma @ np.array(primaries) @ np.linalg.inv(SRGB).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.fixture
def picture() -> Image.Image:
    """Colours that sRGB has in both profiles."""
    pixels = np.random.default_rng(0).integers(90, 180, (16, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("primaries", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 2.19921875)])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_colours_are_converted_by_their_profile(picture, primaries, gamma, ending, tmp_path, caplog):
    path = tmp_path / f"photograph.{ending}"
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    picture.save(path, icc_profile=profile(primaries, gamma), **options)
    stored = np.asarray(Image.open(path).convert("RGB"))
    wanted = in_srgb(stored, primaries, gamma)
    assert np.abs(wanted - stored).mean() > 1
    found = images.read(path)[0].numpy() * 255
    assert np.abs(found - wanted).max() <= 1.5 and not caplog.records
    prepared = prepare(Item(path.name, path.read_bytes()), Geometry("pad", 0, 0, 8), str(tmp_path))
    assert np.array_equal(prepared.pixels[:, :16, :24].transpose(1, 2, 0), np.rint(found))


def test_srgb_stays_as_it_is(picture):
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    picture.save(file, "png", icc_profile=srgb)
    converted = to_srgb(Image.open(file))
    assert np.array_equal(np.asarray(converted.pixels), np.asarray(picture)) and not converted.notes


def test_transparency_keeps_its_profile(picture):
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.info["icc_profile"] = profile(DISPLAY_P3, 2.2)
    converted = to_srgb(picture, matte=(0, 0, 0))
    alpha = np.asarray(picture)[..., 3:] / 255
    wanted = in_srgb(np.asarray(picture)[..., :3], DISPLAY_P3, 2.2) * alpha
    assert np.abs(np.asarray(converted.pixels) - wanted).max() <= 2
    assert np.array_equal(np.asarray(converted.alpha), np.asarray(picture)[..., 3])


@pytest.mark.parametrize(
    "bad", [b"junk", profile(DISPLAY_P3, 2.2)[:200], profile(DISPLAY_P3, 2.2, b"9CLR"), bytes(1 << 25)]
)
def test_a_profile_that_can_not_be_used_is_said(picture, bad, tmp_path, caplog):
    picture.info["icc_profile"] = bad
    converted = to_srgb(picture)
    assert np.array_equal(np.asarray(converted.pixels), np.asarray(picture))
    assert len(converted.notes) == 1 and "colour profile can't be used" in converted.notes[0]


def transparent(mode: str) -> Image.Image:
    """Hidden red, half of it shown."""
    if mode == "P":
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([255, 0, 0, 255, 0, 0])
        picture.paste(1, (4, 0, 8, 8))
        picture.info["transparency"] = 0
        return picture
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (4, 0, 8, 8))
    return picture if mode == "RGBA" else picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa", "La"])
def test_what_is_transparent_lies_on_the_matte(mode, tmp_path, caplog):
    picture = transparent("LA").convert("La") if mode == "La" else transparent(mode)
    pixels = np.asarray(to_srgb(picture, matte=(0, 0, 255)).pixels)
    assert (pixels[:, :4] == (0, 0, 255)).all() and (pixels[:, 4:, 2] < 128).all()
    if mode in ("RGBA", "LA", "P"):
        picture.save(path := tmp_path / "logo.png")
        assert (images.read(path)[0, :, :4] == 1).all()
        assert caplog.messages == [f"{path}: what is transparent in it is laid on white."]


def test_an_opaque_alpha_is_not_mentioned(picture):
    shown = picture.convert("RGBA")
    converted = to_srgb(shown)
    assert converted.alpha is None and not converted.notes
    assert np.array_equal(np.asarray(converted.pixels), np.asarray(picture))


def test_animations_and_cmyk_are_said(picture, tmp_path, caplog):
    picture.save(
        path := tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90), picture.rotate(180)]
    )
    images.read(path)
    picture.convert("CMYK").save(other := tmp_path / "printed.jpg")
    images.read(other)
    assert caplog.messages == [
        f"{path}: only the first of 3 frames is used.",
        f"{other}: its CMYK has no colour profile: its colours are a guess.",
    ]


def test_floats_are_black_to_white_or_refused(tmp_path):
    Image.fromarray(values := np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(path := tmp_path / "grey.tif")
    assert np.array_equal(images.read(path)[0].numpy(), values[..., None].repeat(3, 2))
    path = tmp_path / "depth.tif"
    for value in (-1.0, float("nan"), 255.0, 7.5):
        Image.new("F", (8, 8), value).save(path)
        with pytest.raises(images.ImageError, match=rf"depth\.tif.*from {value:g} to {value:g}, where 0 to 1 is black"):
            images.read(path)
    prepared = prepare(Item("depth.tif", path.read_bytes()), Geometry("pad", 0, 0, 8), str(tmp_path))
    assert isinstance(prepared, Unreadable) and "black to white" in prepared.reason


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of uint16 [H, W, 3 or 4], written here: Pillow writes none."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(pixels: np.ndarray, orientation: int = 1, **tags: int) -> bytes:
    """A TIFF of uint16 [H, W, channels], written here. tags: others, such as t284=2."""
    height, width, channels = pixels.shape
    entries = {256: width, 257: height, 259: 1, 262: 2 if channels > 1 else 1, 274: orientation, 277: channels}
    entries |= {258: 16, 278: height, 284: 1} | {int(name[1:]): value for name, value in tags.items()}
    at = 8 + 2 + (len(entries) + 2) * 12 + 4
    fields = {tag: (3, 1, value) for tag, value in entries.items()}
    fields |= {273: (4, 1, at + 8), 279: (4, 1, pixels.nbytes)} | ({258: (3, channels, at)} if channels > 2 else {})
    table = b"".join(struct.pack("<HHII", tag, *field) for tag, field in sorted(fields.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(fields))
    return head + table + bytes(4) + struct.pack("<HHHH", *[16] * 4) + pixels.tobytes()


@pytest.fixture
def deep() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)


def test_16_bits_are_read_and_written_whole(deep, tmp_path, caplog):
    for name, data in (("a.png", png16(deep)), ("a.tif", tiff16(deep))):
        (tmp_path / name).write_bytes(data)
        found = images.read(tmp_path / name)[0]
        assert np.abs(found.numpy() * 65535 - deep).max() < 0.01
        images.write(tmp_path / f"back-{name}", found, bits=16)
        assert torch.equal(images.read(tmp_path / f"back-{name}")[0], found)
        assert "RGB;16" in str(Image.open(tmp_path / f"back-{name}").tile[0][3])
    assert not caplog.records
    with pytest.raises(images.ImageError, match=r"a\.jpg can't have 16 bits a channel: 8, or 16 for \.png or"):
        images.write(tmp_path / "a.jpg", found, bits=16)


def test_16_bits_with_alpha_and_a_matte(deep, tmp_path):
    alpha = np.full((6, 8, 1), 65535, dtype=np.uint16)
    alpha[:, :3] = 0
    (path := tmp_path / "a.png").write_bytes(png16(np.concatenate([deep, alpha], axis=2)))
    found = images.read(path, matte=(0, 51, 255))[0].numpy()
    assert np.allclose(found[:, :3], (0, 0.2, 1)) and np.abs(found[:, 3:] * 65535 - deep[:, 3:]).max() < 0.01
    frame = next(images.frames(path, keep_alpha=True))
    images.write(path, frame.pixels[0], frame.alpha[0], bits=16)
    assert torch.equal(next(images.frames(path, keep_alpha=True)).pixels, frame.pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_stand_upright(orientation, channels, deep, tmp_path):
    (path := tmp_path / "a.tif").write_bytes(tiff16(deep[..., :channels], orientation))
    with open_image(path) as file:
        converted = to_srgb(file)
    eight = (deep[..., :channels] >> 8).astype(np.uint8).repeat(3 // channels, 2)
    Image.fromarray(eight).save(other := tmp_path / "8.tif", tiffinfo={274: orientation})
    upright = np.asarray(to_srgb(Image.open(other)).pixels)
    assert converted.deep.shape == upright.shape
    assert np.abs(converted.deep * 65535 / 256 - upright).max() < 1


def test_tiffs_that_opencv_takes_for_others(deep, tmp_path):
    """Its numbers are not what these files mean."""
    grey, path = deep[..., :1], tmp_path / "a.tif"
    alpha = np.concatenate([deep, np.full_like(grey, 30000)], axis=2)
    path.write_bytes(tiff16(grey, t262=0))  # white is zero
    assert np.abs(images.read(path)[0].numpy() * 65535 - (65535 - grey.astype(float))).max() < 0.01
    path.write_bytes(tiff16(grey >> 1, t339=2))
    with pytest.raises(images.ImageError, match="signed"):
        images.read(path)
    path.write_bytes(tiff16(deep, t284=2))
    with pytest.raises(images.ImageError, match="stored one after the other"):
        images.read(path)
    for extra in (0, 1):  # not alpha, and premultiplied
        path.write_bytes(tiff16(alpha, t338=extra))
        found = to_srgb(open_image(path))
        assert found.deep is None and "16 bits are cut to 8" in found.notes[0]
    path.write_bytes(tiff16(alpha, t338=2))
    assert np.abs(next(images.frames(path, keep_alpha=True)).pixels[0].numpy() * 65535 - deep).max() < 0.01


def test_a_grey_that_stands_for_nothing(deep, tmp_path):
    grey = deep[..., 0].copy()
    grey[:, :2] = 1234
    Image.fromarray(grey).save(path := tmp_path / "a.png", transparency=1234)
    frame = next(images.frames(path, keep_alpha=True))
    assert (frame.alpha[0, :, :2] == 0).all() and (frame.alpha[0, :, 2:] == 255).all()
    assert np.abs(frame.pixels[0, :, 2:, 0].numpy() * 65535 - grey[:, 2:]).max() < 0.01
    assert (images.read(path)[0, :, :2] == 1).all()


def test_a_profile_is_known_by_its_numbers_not_by_its_name(picture):
    linear = profile(SRGB.T, 1.0).replace(b"made for a test", b"sRGB, linear   ")
    picture.info["icc_profile"] = linear
    found = np.asarray(to_srgb(picture).pixels)
    assert np.abs(found - in_srgb(np.asarray(picture), SRGB.T, 1.0)).max() <= 1.5


@pytest.mark.parametrize("space", [b"GRAY", b"CMYK"])
def test_a_profile_of_another_kind_of_picture_is_said(picture, space):
    picture.info["icc_profile"] = profile(DISPLAY_P3, 2.2, space)
    found = to_srgb(picture)
    assert np.array_equal(np.asarray(found.pixels), np.asarray(picture))
    assert f"it is for {space.decode()}, and the picture is RGB" in found.notes[0]


def test_a_gamma_that_is_not_heeded_is_said(picture, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    for gamma, notes in ((45455, 0), (100000, 1)):
        info = PngInfo()
        info.add(b"gAMA", struct.pack(">I", gamma))
        picture.save(path := tmp_path / "a.png", pnginfo=info)
        assert len(to_srgb(Image.open(path)).notes) == notes


def moving(path, **options) -> list[np.ndarray]:
    """Write an animation, the second of whose pictures has a hole; return them."""
    shown = [np.random.default_rng(i).integers(0, 256, (12, 16, 4), dtype=np.uint8) for i in range(3)]
    for one in shown:
        one[..., 3] = 255
    shown[1][3:6, :, 3] = 0
    first, *others = map(Image.fromarray, shown)
    first.save(path, save_all=True, append_images=others, duration=[200, 300, 400], **options)
    return shown


@pytest.mark.parametrize("ending", [".png", ".webp", ".gif"])
def test_holes_of_animations_stay_holes(ending, tmp_path, caplog):
    shown = moving(tmp_path / "a.webp", loop=0, lossless=True)
    read = list(images.frames(tmp_path / "a.webp", keep_alpha=True, animation=True))
    alphas = torch.cat([f.alpha if f.alpha is not None else torch.full((1, 12, 16), 255).byte() for f in read])
    pixels = torch.cat([frame.pixels for frame in read])
    images.write_animation(back := tmp_path / f"back{ending}", pixels, [f.milliseconds for f in read], alphas)
    with Image.open(back) as file:
        assert file.n_frames == 3
        for i, one in enumerate(shown):
            file.seek(i)
            assert np.array_equal(np.asarray(file.convert("RGBA"))[..., 3], one[..., 3])
            assert file.info["duration"] == [200, 300, 400][i]
    assert not caplog.records


def test_what_a_gif_can_not_hold_is_said(tmp_path, caplog):
    alpha = torch.arange(256).byte().view(16, 16)
    images.write(path := tmp_path / "a.gif", torch.full((16, 16, 3), 0.5), alpha)
    assert np.array_equal(np.asarray(Image.open(path).convert("RGBA"))[..., 3] > 0, alpha.numpy() >= 128)
    assert "alpha is rounded" in caplog.text


def test_posters_layers_and_repeats(tmp_path, caplog):
    moving(path := tmp_path / "a.png", loop=2)
    assert [f.milliseconds for f in images.frames(path, animation=True)] == [200, 300, 400]
    assert "how often it repeats is not kept" in caplog.text
    poster, frame = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    others = {"append_images": [frame, Image.new("RGB", (8, 8), "lime")], "default_image": True, "duration": [50, 60]}
    poster.save(path, save_all=True, **others)
    assert [f.milliseconds for f in images.frames(path, animation=True)] == [50, 60]
    assert (next(images.frames(path, animation=True)).pixels[..., 2] == 1).all()
    poster.save(path := tmp_path / "a.gif", save_all=True, append_images=[frame], duration=0, loop=0)
    assert [f.milliseconds for f in images.frames(path, animation=True)] == [0, 0]
    poster.save(path := tmp_path / "a.tif", save_all=True, append_images=[frame])
    assert [f.milliseconds for f in images.frames(path, animation=True)] == [None, None]


def test_what_is_damaged_after_the_first_picture(tmp_path, caplog):
    shown = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for i in range(3)]
    shown[0].save(path := tmp_path / "a.gif", save_all=True, append_images=shown[1:], duration=100)
    whole, expected, damaged = path.read_bytes(), images.read(path), 0
    for at in range(len(whole) // 2, len(whole) - 20, 7):
        path.write_bytes(whole[:at])
        assert torch.equal(images.read(path), expected)
        try:
            damaged += len(list(images.frames(path, animation=True))) < 3
        except images.ImageError:
            damaged += 1
    assert damaged > 10 and "are damaged" in caplog.text


def test_what_can_not_be_written_is_an_error_in_words(tmp_path):
    picture, path = torch.full((4, 6, 3), 0.5), tmp_path / "a.png"
    images.write(path, (picture * 255).round().byte())  # uint8 is 0 to 255
    assert np.asarray(Image.open(path)).mean() == 128
    wrong = [((picture.numpy(),), "tensor"), ((picture[..., 0],), r"\[4, 6\]"), ((picture * torch.nan,), "NaN")]
    wrong += [((picture, torch.zeros(1, 4, 6).byte()), "Alpha"), ((picture, torch.zeros(4, 6)), "Alpha")]
    wrong += [((picture, None, 12), "12 bits")]
    for arguments, words in wrong:
        with pytest.raises(images.ImageError, match=words):
            images.write(path, *arguments)
    assert np.asarray(Image.open(path)).mean() == 128


def test_what_cuts_16_bits_is_said(deep, tmp_path, caplog, monkeypatch):
    (path := tmp_path / "a.png").write_bytes(png16(deep))
    with Image.open(path) as file:
        file.info["icc_profile"] = profile(DISPLAY_P3, 2.2)
        assert to_srgb(file).notes == ("its 16 bits are cut to 8, to convert its colours by its profile",)
    monkeypatch.setitem(sys.modules, "cv2", None)
    found = images.read(path)[0].numpy() * 65535
    assert np.abs(found - deep).max() < 300
    assert caplog.messages == [f"{path}: its 16 bits are cut to 8 (pip install opencv-python-headless keeps them)."]
    with pytest.raises(images.ImageError, match="need OpenCV"):
        images.write(path, torch.zeros(4, 4, 3), bits=16)
    assert path.read_bytes() == png16(deep)


def test_kept_alpha_keeps_colours_and_hides_none(tmp_path):
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.paste((10, 20, 30, 100), (4, 0, 8, 8))
    picture.save(path := tmp_path / "a.png")
    frame = next(images.frames(path, keep_alpha=True))
    assert (frame.pixels[0, :, :4] == 1).all()  # nothing is seen of the red
    assert torch.equal((frame.pixels[0, 0, 4] * 255).round(), torch.tensor([10.0, 20.0, 30.0]))
    for ending in (".png", ".webp", ".tif"):
        images.write(back := tmp_path / f"back{ending}", frame.pixels[0], frame.alpha[0])
        assert np.array_equal(np.asarray(Image.open(back).getchannel("A")), np.asarray(picture.getchannel("A")))
    with pytest.raises(images.ImageError, match="can't be transparent"):
        images.write(tmp_path / "a.jpg", frame.pixels[0], frame.alpha[0])
