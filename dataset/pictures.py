"""Pictures of every kind, read the same way by all stages.

Shapes: H x W pixels, uint8 RGB, 0 to 255.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from common.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # Pillow's conversions clip these to 255
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
# tags of TIFF 6.0
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
LOWEST = (340, 280)  # SMinSampleValue, MinSampleValue
HIGHEST = (341, 281)


def read_picture(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) of a picture file, upright and laid on black.

    Grey of more than 8 bits is linear from the lowest to the highest value of its format, or of the range
    that the file itself states.

    Raises: `InputError` naming the file if it is broken, or if its numbers have no known range.
    """
    with _opened(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        if picture.mode in DEEP_GREY:
            return _deep_grey(path, picture, np.asarray(upright).astype(np.float64))
        if not upright.has_transparency_data:
            return np.array(upright.convert("RGB"))
        return on_black(np.asarray(upright.convert("RGBA")))


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of a picture file as `read_picture` returns it, from the file's header.

    Raises: `InputError` naming the file if it is broken.
    """
    with _opened(path) as picture:
        # The base class reads the header only; the getexif of PNG decodes the pixels to look behind them.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
        sides = picture.height, picture.width
    return sides[::-1] if orientation in QUARTER_TURNS else sides


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The open picture file; errors of opening and decoding become `InputError`."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).replace(f"'{path}'", "the file")
        raise InputError(f"{path}: not a readable picture ({reason})") from None


def on_black(rgba_HW4: np.ndarray) -> np.ndarray:
    """Lay a picture on black: (H, W, 4) -> (H, W, 3)."""
    colour, alpha = rgba_HW4[..., :3].astype(np.uint16), rgba_HW4[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def _deep_grey(path: Path, picture: Image.Image, values_HW: np.ndarray) -> np.ndarray:
    """Grey numbers as the pixels (H, W, 3) that they stand for."""
    tags = getattr(picture, "tag_v2", {})
    low, high = _stated(tags, LOWEST), _stated(tags, HIGHEST)
    if high is None and picture.mode.startswith("I;16"):
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        high = _png_maximum(path, values_HW) if picture.format == "PNG" else 2**bits - 1
    if high is None and picture.format == "PPM" and picture.mode == "I":
        high = 65535  # Pillow brings the file's own maximum to this
    low = low or 0
    if high is None or high <= low:
        raise InputError(f"numbers of mode {picture.mode} of no known range; save it with 8 or 16 bits")
    grey_HW = ((values_HW - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey_HW = 255 - grey_HW
    return np.repeat(grey_HW[..., None], 3, axis=-1)


def _stated(tags: dict, names: tuple[int, ...]) -> float | None:
    """The first of some numbers that a TIFF file gives."""
    given = (tags.get(name) for name in names)
    found = next((value for value in given if value is not None), None)
    return found[0] if isinstance(found, tuple) else found


def _png_maximum(path: Path, values_HW: np.ndarray) -> int:
    """White in a 16-bit grey PNG: 65535, but for a file of fewer significant bits that was not scaled up.

    PNG wants samples scaled to 16 bits, and the original number of bits in the sBIT chunk; some writers leave
    the numbers as they are. Scaled ones end in zeros or repeat their upper bits.
    """
    bits = _significant_bits(path)
    if not 0 < bits < 16 or values_HW.max() >= 2**bits:
        return 65535
    samples = values_HW.astype(np.uint32)
    upper = samples >> (16 - bits)
    repeated, place = np.zeros_like(upper), 16 - bits
    while place > -bits:
        repeated |= upper << place if place >= 0 else upper >> -place
        place -= bits
    scaled = (samples == upper << (16 - bits)) | (samples == repeated)
    return 65535 if scaled.all() else 2**bits - 1


def _significant_bits(path: Path) -> int:
    """The first number of a PNG's sBIT chunk; 16 if it has none."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT" and length:
                return file.read(1)[0]
            if kind == b"IDAT":
                break
            file.seek(length + 4, 1)
    return 16
