"""Reading picture files of every kind.

Shapes: H x W pixels, uint8 RGB, 0 to 255.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from common.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # Pillow clips these to 255
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
# tags of TIFF 6.0
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
LOWEST = (340, 280)  # SMinSampleValue, MinSampleValue
HIGHEST = (341, 281)


def read_picture(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) of a picture file, upright, transparent parts black.

    Grey of more than 8 bits is scaled linearly from the range that the file states, else from the range of
    its format.

    Raises: `InputError` naming the file if it is broken, or if the range of its values is not known.
    """
    with _opened(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        if picture.mode in DEEP_GREY:
            return _deep_grey(path, picture, np.asarray(upright).astype(np.float64))
        if not upright.has_transparency_data:
            return np.array(upright.convert("RGB"))
        return on_black(np.asarray(upright.convert("RGBA")))


def read_values(path: Path) -> np.ndarray:
    """The numbers (H, W) in a grey or one-bit picture, or those of the colours in a picture with a palette.

    Raises: `InputError` naming the file if it is broken, or has colours.
    """
    with _opened(path) as picture:
        values = np.asarray(ImageOps.exif_transpose(picture))
    return one_channel(values, path) if values.ndim == 3 else values.astype(np.int64)


def one_channel(pixels_HWC: np.ndarray, origin: object) -> np.ndarray:
    """(H, W) of grey pixels (H, W, C). Raises: `InputError` naming `origin` if they have colours."""
    if (pixels_HWC[..., :3] != pixels_HWC[..., :1]).any() or pixels_HWC.shape[-1] == 2:
        raise InputError(f"{origin}: has colours; save the numbers of the labels, as a grey or palette PNG")
    return pixels_HWC[..., 0].astype(np.int64)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of a picture file as `read_picture` returns it, from the file's header.

    Raises: `InputError` naming the file if it is broken.
    """
    with _opened(path) as picture:
        # The base class reads the header only; PNG's own getexif decodes the pixels first.
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
    """RGBA over black: (H, W, 4) -> (H, W, 3)."""
    colour, alpha = rgba_HW4[..., :3].astype(np.uint16), rgba_HW4[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def _deep_grey(path: Path, picture: Image.Image, values_HW: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits -> pixels (H, W, 3)."""
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
    """The value of the first of some tags that a TIFF file has."""
    given = (tags.get(name) for name in names)
    found = next((value for value in given if value is not None), None)
    return found[0] if isinstance(found, tuple) else found


def _png_maximum(path: Path, values_HW: np.ndarray) -> int:
    """White in a 16-bit grey PNG: 65535, except in a file of fewer significant bits that was not scaled up.

    PNG requires samples scaled to 16 bits, with the original number of bits in the sBIT chunk, but some
    writers do not scale them. Scaled values end in zeros, repeat their upper bits, or are rounded products.
    """
    chunk = re.search(rb"\x01sBIT(.)", path.read_bytes().partition(b"IDAT")[0], re.DOTALL)
    bits = chunk[1][0] if chunk else 16
    if not 0 < bits < 16 or values_HW.max() >= 2**bits:
        return 65535
    upper = np.floor(values_HW / 2 ** (16 - bits))
    shifted, linear = upper * 2 ** (16 - bits), upper * (65535 / (2**bits - 1))
    scaled = (values_HW == shifted) | (np.abs(values_HW - linear) < 1)  # repeated bits differ by less than 1
    return 65535 if scaled.all() else 2**bits - 1
