import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.Image import Transpose
from video_files import corners, quadrants

from common.errors import InputError
from dataset.pictures import read_picture

COLOUR = (200, 40, 60)


def ramp(white: int) -> np.ndarray:
    return np.tile(np.linspace(0, white, 64).round().astype(np.uint16), (16, 1))


def grey_of(path) -> np.ndarray:
    pixels = read_picture(path)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[8, :, 0]


def linear(values, white, black=0) -> np.ndarray:
    return ((values[8].astype(float) - black) * 255 / (white - black)).round()


def write_tiff(path, values, bits=16, order="<", **numbers) -> None:
    """A grey TIFF; `numbers` are more tags, each with a number."""
    names = {"photometric": 262, "sample_format": 339, "low": 280, "high": 281}
    if bits == 12:
        whole = int("".join(f"{value:012b}" for value in values.ravel()), 2)
        data = whole.to_bytes(values.size * 12 // 8, "big")
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data)}
    tags |= {names[name]: number for name, number in numbers.items()}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + data)


def write_png(path, values, significant_bits=None) -> None:
    """A 16-bit grey PNG, with an sBIT chunk if a number of bits is given."""
    Image.fromarray(values).save(path)
    if significant_bits:
        whole, chunk = path.read_bytes(), b"sBIT" + bytes([significant_bits])
        chunk = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize(("mode", "suffix"), [
    ("RGB", "png"), ("RGB", "tif"), ("RGB", "webp"), ("RGB", "bmp"), ("RGBA", "png"), ("RGBA", "tif"),
    ("P", "png"), ("CMYK", "tif"), ("CMYK", "jpg"), ("YCbCr", "jpg"), ("RGBX", "tif"),
])
def test_colours_of_every_mode_are_right(tmp_path, mode, suffix):
    palette = {"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}
    Image.new("RGB", (32, 32), COLOUR).convert(mode, **palette).save(tmp_path / f"x.{suffix}")
    assert np.abs(read_picture(tmp_path / f"x.{suffix}")[16, 16].astype(int) - COLOUR).max() <= 4


def test_lab_becomes_rgb(tmp_path):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    ImageCms.applyTransform(Image.new("RGB", (8, 8), COLOUR), transform).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as picture:
        assert picture.mode == "LAB"
    assert np.abs(read_picture(tmp_path / "x.tif")[4, 4].astype(int) - COLOUR).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_of_8_bits_and_less_is_kept(tmp_path, mode):
    values = np.tile(np.repeat([0, 255], 32).astype(np.uint8), (16, 1))
    Image.fromarray(values).convert(mode).save(tmp_path / "x.png")
    assert np.array_equal(grey_of(tmp_path / "x.png"), values[8])


@pytest.mark.parametrize(("mode", "suffix"), [("LA", "png"), ("PA", "tif"), ("P", "png"), ("RGBA", "png")])
def test_transparent_parts_are_black(tmp_path, mode, suffix):
    picture = Image.new("RGBA", (8, 8), (*COLOUR, 255))
    picture.paste((*COLOUR, 0), (0, 0, 4, 8))
    converted = picture.convert("P" if mode == "PA" else mode)
    if mode == "PA":
        converted.putalpha(picture.getchannel("A"))
    assert converted.mode == mode
    converted.save(tmp_path / f"x.{suffix}")
    pixels = read_picture(tmp_path / f"x.{suffix}")
    assert not pixels[4, 1].any()
    assert pixels[4, 6].any()


def test_16_bit_grey_png_is_linear(tmp_path):
    write_png(tmp_path / "x.png", ramp(65535))
    assert np.array_equal(grey_of(tmp_path / "x.png"), linear(ramp(65535), 65535))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_tiff_is_linear(tmp_path, order):
    write_tiff(tmp_path / "x.tif", ramp(65535), order=order)
    assert np.array_equal(grey_of(tmp_path / "x.tif"), linear(ramp(65535), 65535))


def test_tiff_whose_white_is_zero_is_inverted(tmp_path):
    write_tiff(tmp_path / "x.tif", ramp(65535), photometric=0)
    assert np.abs(grey_of(tmp_path / "x.tif") - (255 - linear(ramp(65535), 65535))).max() <= 1


def test_12_bits_in_16_follow_the_range_that_the_file_states(tmp_path):
    values = ramp(4095)
    write_tiff(tmp_path / "plain.tif", values)
    write_tiff(tmp_path / "stated.tif", values, low=0, high=4095)
    write_tiff(tmp_path / "packed.tif", values, bits=12)
    write_png(tmp_path / "plain.png", values)
    write_png(tmp_path / "stated.png", values, significant_bits=12)
    for name in ("stated.tif", "packed.tif", "stated.png"):
        assert np.array_equal(grey_of(tmp_path / name), linear(values, 4095))
    for name in ("plain.tif", "plain.png"):
        assert np.array_equal(grey_of(tmp_path / name), linear(values, 65535))


def test_samples_scaled_to_16_bits_as_png_asks_for_stay_so(tmp_path):
    values = ramp(4095) >> 5  # a dark picture
    for name, scaled in {"shifted": values << 4, "repeated": values << 4 | values >> 8}.items():
        write_png(tmp_path / f"{name}.png", scaled, significant_bits=12)
        assert np.array_equal(grey_of(tmp_path / f"{name}.png"), linear(scaled, 65535))


@pytest.mark.parametrize(("kind", "sample_format"), [(np.int32, 2), (np.float32, 3), (np.int16, 2)])
def test_numbers_without_a_known_range_are_refused_and_with_one_read(tmp_path, kind, sample_format):
    values = ramp(1000).astype(kind)
    write_tiff(tmp_path / "x.tif", values, values.itemsize * 8, sample_format=sample_format)
    with pytest.raises(InputError, match=r"x\.tif: not a readable picture \(numbers of mode [IF] of no"):
        read_picture(tmp_path / "x.tif")
    write_tiff(tmp_path / "x.tif", values, values.itemsize * 8, sample_format=sample_format, low=0, high=1000)
    assert np.array_equal(grey_of(tmp_path / "x.tif"), linear(values, 1000))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour_keeps_its_upper_bits(tmp_path, suffix):
    values = np.stack([ramp(65535), ramp(65535)[:, ::-1], ramp(30000)], axis=-1)
    cv2.imwrite(str(tmp_path / f"x.{suffix}"), values[..., ::-1])
    assert np.abs(read_picture(tmp_path / f"x.{suffix}") - values * (255 / 65535)).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize(("orientation", "undone"), [
    (1, None), (2, Transpose.FLIP_LEFT_RIGHT), (3, Transpose.ROTATE_180), (4, Transpose.FLIP_TOP_BOTTOM),
    (5, Transpose.TRANSPOSE), (6, Transpose.ROTATE_90), (7, Transpose.TRANSVERSE), (8, Transpose.ROTATE_270),
])
def test_every_exif_orientation_is_applied(tmp_path, suffix, orientation, undone):
    picture = Image.fromarray(quadrants())
    stored = picture.transpose(undone) if undone is not None else picture
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / f"x.{suffix}", exif=exif)
    pixels = read_picture(tmp_path / f"x.{suffix}")
    assert corners(pixels) == ["red", "green", "blue", "white"]
    assert pixels.shape == (64, 96, 3)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_broken_picture_is_named(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png: not a readable picture"):
        read_picture(tmp_path / "x.png")
