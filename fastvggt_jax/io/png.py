"""PNG without filters, of which Pillow tries all on every line: that takes half of its time, and makes
pictures of depth a tenth smaller or larger.
"""

import struct
import zlib
from collections.abc import Mapping

import numpy as np


def png(pixels: np.ndarray, text: Mapping[str, str]) -> bytes:
    """The file of a picture u8[H, W, 3], with these text fields. Source: https://www.w3.org/TR/png-3/."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with the number of its filter, none
    lines[:, 1:] = pixels.reshape(height, -1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]  # 8 bits, RGB
    parts += [(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in text.items()]
    # Of zlib's levels the lowest is the fastest by far, for files that are a tenth larger.
    parts += [(b"IDAT", zlib.compress(lines, 1)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
