"""Pictures of every kind, read the same way by all stages.

Shapes: H x W pixels, uint8 RGB, 0 to 255.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import InputError


def read_picture(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) of a picture file, upright and laid on black.

    Raises: `InputError` naming the file if it is broken or of an unknown kind.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode == "F":
                raise InputError("its numbers have no known range")
            if not upright.has_transparency_data:
                return np.array(upright.convert("RGB"))
            rgba = upright.convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).replace(f"'{path}'", "the file")
        raise InputError(f"{path}: not a readable picture ({reason})") from None
    return on_black(np.asarray(rgba))


def on_black(rgba_HW4: np.ndarray) -> np.ndarray:
    """Lay a picture on black: (H, W, 4) -> (H, W, 3)."""
    colour, alpha = rgba_HW4[..., :3].astype(np.uint16), rgba_HW4[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)
