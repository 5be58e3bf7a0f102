"""PNG files of 16 bits in colour, which Pillow cannot write."""

import struct
import zlib

from numpy import ndarray


def png16(values: ndarray, color_type: int) -> bytes:
    """A file of 16-bit values (height, width, channels); 2 is colour, 4 grey and 6 colour with alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
