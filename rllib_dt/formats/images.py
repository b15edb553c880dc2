"""Decodes images that a recording holds as PNG or JPEG."""

import io
from collections.abc import Sequence

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion
from rllib_dt.types import Array

_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_VALUE_BYTES = {"I": 4, "I;16": 2, "I;16B": 2, "I;16L": 2, "F": 4}
"""Bytes of a pixel in modes of one large number each, such as depth in 16 bits."""
_AS_THEY_ARE = ("L", "RGB", "RGBA", *_VALUE_BYTES)
"""Modes whose values are pixels; others, such as palettes, are converted."""


def is_encoded(value: object) -> bool:
    """Returns whether bytes are a PNG or a JPEG."""
    return isinstance(value, bytes) and value.startswith(_BEGINNINGS)


def decode_images(values: Sequence[bytes], source: str, name: str, expansion: Expansion) -> Array:
    """Decodes n images of one size to (n, H, W) or (n, H, W, C) uint8.

    Images of 16 bits, such as depth, are (n, H, W) of a larger integer type.

    Args:
        values: PNG or JPEG.
        source: the file, for messages.
        name: the column, for messages.
        expansion: what the decoded images count towards, before they are decoded.

    Raises:
        DataError: an image cannot be decoded, or has another size than the first.
        ImportError: Pillow is not installed.
    """
    images = [_decode(value, row, source, name, expansion) for row, value in enumerate(values)]
    for row, image in enumerate(images):
        if image.shape != images[0].shape:
            raise DataError(
                source,
                f"column {name!r}: the image in row {row} has the shape {image.shape}, the first "
                f"one {images[0].shape}",
                "record images of one size and mode at every step",
            )
    return np.stack(images)


def _decode(value: bytes, row: int, source: str, name: str, expansion: Expansion) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{source}: column {name!r} holds encoded images, which need Pillow: "
            "pip install 'rllib_dt[images]'"
        ) from error
    if not is_encoded(value):
        problem = "it is neither PNG nor JPEG"
    else:
        try:
            with Image.open(io.BytesIO(value), formats=("PNG", "JPEG")) as image:
                mode = image.mode if image.mode in _AS_THEY_ARE else _converted(image.mode)
                size = image.width * image.height * _VALUE_BYTES.get(mode, len(mode))
                expansion.take(size, f"column {name!r}")
                return np.asarray(image if image.mode == mode else image.convert(mode))
        except DataError:
            raise
        # what damaged bytes make the library raise cannot be listed
        except Exception as error:
            problem = str(error)
    raise DataError(
        source,
        f"column {name!r}: the image in row {row} cannot be decoded ({problem})",
        "record it again, or remove its episode",
    )


def _converted(mode: str) -> str:
    if mode in ("1", "L"):
        return "L"
    return "RGBA" if mode in ("PA", "LA", "RGBa") else "RGB"
