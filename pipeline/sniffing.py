"""
What a file is, by its own first bytes: its type, its size in pixels, and whether it is what its address promises.

A file's server names a type too, and so does the ending of its address. Neither is believed where a browser would show
the file: content that calls itself a picture, and is a page with a script, must not become a page at our address.
"""

import base64
import binascii
import mimetypes
import re
from typing import BinaryIO

import filetype
import imagesize

HEAD_BYTES = 8192
"""How much of a file `content_type` wants to see."""

UNKNOWN = "application/octet-stream"

_USUAL = {
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/x-aiff": "audio/aiff",
    "video/x-m4v": "video/mp4",
    "image/jpx": "image/jp2",
}
_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,100}")
_SHOWN = re.compile("(image|video|audio)/")
_MEASURED = frozenset(
    {"image/png", "image/apng", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/tiff", "image/avif"}
)
_MARKUP = re.compile(rb"[\xef\xbb\xbf\s]*(<[!?a-zA-Z]|[{\[])")
_DATA_URI = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)?(;[a-z0-9=-]+)*;base64,", re.IGNORECASE)
_NAKED = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")


def content_type(head: bytes, declared: str | None = None) -> str:
    """
    The type of the file that begins with *head*, where its server *declared* one.

    A picture, a video or a sound is one only if its bytes are; of anything else the server's word is taken.
    """
    found: str | None = filetype.guess_mime(head) if head else None
    if found:
        return _USUAL.get(found, found)
    if declared and _TYPE.fullmatch(declared) and (not _SHOWN.match(declared) or declared == "image/svg+xml"):
        return declared
    return UNKNOWN


def is_shown(content_type: str) -> bool:
    """Whether a browser may show it: a picture, video or sound, and nothing that can hold a script."""
    return bool(_SHOWN.match(content_type)) and "xml" not in content_type


def is_no_such_file(head: bytes, path: str) -> bool:
    """Whether *path* promises a picture, video or sound, and what came is a page or JSON: an error that says 200."""
    promised, _ = mimetypes.guess_type(path)
    is_media = bool(promised) and is_shown(promised or "")
    return is_media and content_type(head) == UNKNOWN and bool(_MARKUP.match(head))


def pixels(file: BinaryIO, content_type: str) -> tuple[int | None, int | None]:
    """Width and height of a picture; None for both when it is none, or does not say."""
    if content_type not in _MEASURED:
        return None, None
    try:
        file.seek(0)
        width, height = imagesize.get(file)
    except Exception:  # whatever a broken picture makes the library do, its size is not known
        return None, None
    return (width, height) if 0 < width < 2**31 and 0 < height < 2**31 else (None, None)


def decoded(text: str) -> bytes | None:
    """The file that a text holds as base64, naked or as a `data:` URI; None: it is a text."""
    uri = _DATA_URI.match(text)
    if not uri and not _NAKED.fullmatch(text):
        return None
    try:
        data = base64.b64decode(re.sub(r"\s", "", text[uri.end() :] if uri else text), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if uri or filetype.guess_mime(data[:HEAD_BYTES]) else None
