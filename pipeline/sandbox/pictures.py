"""What tasks make: a real PNG with the prompt drawn on it, or the smallest file that calls itself an MP4."""

import hashlib
import io
import struct
import textwrap
import zlib
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

_IEND = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_MARGIN = 40


@lru_cache(maxsize=64)
def picture(task_id: str, number: int, prompt: str, size: tuple[int, int]) -> bytes:
    """
    A PNG of *size*; equal arguments give equal bytes, another task or number gives others.

    Two colours and weak compression: drawn while somebody waits for it.
    """
    hue = hashlib.sha256(task_id.encode()).digest()
    image = Image.new("P", size, 0)
    image.putpalette([*(20 + byte // 3 for byte in hue[:3]), 245, 240, 225])
    canvas = ImageDraw.Draw(image)
    canvas.fontmode = "1"
    wide = max(12, (size[0] - 2 * _MARGIN) // 20)
    tall = max(1, (size[1] - 3 * _MARGIN) // 48)
    readable = "".join(sign if sign.isprintable() else " " for sign in prompt[:4000])
    lines = textwrap.wrap(readable.encode("utf-8", "replace").decode(), wide, max_lines=tall, placeholder=" …")
    canvas.multiline_text((_MARGIN, _MARGIN), "\n".join(lines), fill=1, font=_font(36), spacing=12)
    canvas.text((_MARGIN, size[1] - _MARGIN), f"sandbox · {task_id} · {number}", fill=1, font=_font(18))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def clip(task_id: str, number: int) -> bytes:
    """An MP4 by its first bytes: a file type box and a comment, nothing to play."""
    return _box(b"ftyp", b"isom\x00\x00\x02\x00isomiso2mp41") + _box(b"free", f"{task_id} {number}".encode())


def padded(data: bytes, size: int) -> bytes:
    """
    *data* (from `picture` or `clip`) grown to *size* bytes, and still valid; never cut.

    The filler is an ancillary PNG chunk, or a free box: 12 or 8 bytes at the least.
    """
    missing = size - len(data)
    if data.endswith(_IEND):
        if missing < 12:
            return data
        filler = b"saNd" + bytes(missing - 12)  # ancillary, private, safe to copy: readers skip it
        chunk = struct.pack(">I", missing - 12) + filler + struct.pack(">I", zlib.crc32(filler))
        return data[: -len(_IEND)] + chunk + _IEND
    return data + _box(b"free", bytes(missing - 8)) if missing >= 8 else data


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content
