"""What a file is, whatever its server and its address say."""

import base64
import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sniffing
from pipeline.outputs import JSON, TEXT
from pipeline.sandbox.pictures import clip, picture

PNG = picture("a", 1, "a lighthouse", (64, 48))
GIF = b"GIF89a" + struct.pack("<HH", 7, 5) + bytes(20)
PAGE = b"<!DOCTYPE html><script>alert(1)</script>"


@pytest.mark.parametrize(
    ("head", "declared", "content_type"),
    [
        (PNG, "image/png", "image/png"),
        (PNG, "image/jpeg", "image/png"),
        (PNG, "text/html", "image/png"),
        (GIF, None, "image/gif"),
        (clip("a", 1), "application/octet-stream", "video/mp4"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "video/mp4", "audio/wav"),
        (PAGE, "image/png", sniffing.UNKNOWN),
        (PAGE, "text/html", "text/html"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "image/svg+xml"),
        (b"glTF\x02\x00\x00\x00", "model/gltf-binary", "model/gltf-binary"),
        (b"glTF\x02\x00\x00\x00", "no type\r\nSet-Cookie: x", sniffing.UNKNOWN),
        (b"", "image/png", sniffing.UNKNOWN),
        (b"abc", None, sniffing.UNKNOWN),
    ],
)
def test_a_picture_is_one_only_if_its_bytes_are(head: bytes, declared: str | None, content_type: str) -> None:
    """A server's word alone must not make a browser show a file at our address."""
    assert sniffing.content_type(head, declared) == content_type


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        ("image/png", True),
        ("video/mp4", True),
        ("audio/wav", True),
        ("image/svg+xml", False),
        ("text/html", False),
        (TEXT, False),
        (JSON, False),
        (sniffing.UNKNOWN, False),
    ],
)
def test_what_can_hold_a_script_is_not_shown(content_type: str, shown: bool) -> None:
    """It is an attachment: saved, never run at our address."""
    assert sniffing.is_shown(content_type) is shown


@pytest.mark.parametrize(
    ("head", "path", "wrong"),
    [
        (PAGE, "/a/1.png", True),
        (b'\xef\xbb\xbf {"error": "busy"}', "/a/1.mp4", True),
        (PNG, "/a/1.png", False),
        (b"some raw samples", "/a/1.mp3", False),
        (PAGE, "/a/report.html", False),
        (b"{}", "/a/1.json", False),
        (b"<svg/>", "/a/1.svg", False),
        (PAGE, "/a/1", False),
    ],
)
def test_a_page_in_place_of_a_picture_is_an_error_that_says_200(head: bytes, path: str, wrong: bool) -> None:
    """Kept as the output, it would never be fetched again."""
    assert sniffing.is_no_such_file(head, path) is wrong


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (PNG, (64, 48)),
        (GIF, (7, 5)),
        (PNG[:20], (None, None)),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 0, 9) + struct.pack(">I", zlib.crc32(b"")),
            (None, None),
        ),
        (PAGE, (None, None)),
    ],
)
def test_a_picture_tells_its_size(data: bytes, size: tuple[int | None, int | None]) -> None:
    """Without being decoded; one that is broken has none."""
    assert sniffing.pixels(io.BytesIO(data), sniffing.content_type(data)) == size


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
def test_a_file_as_base64_is_a_file(prefix: str) -> None:
    """Naked, as the provider has it, or as a data: URI; in lines or not."""
    assert sniffing.decoded(prefix + base64.b64encode(PNG).decode()) == PNG
    assert sniffing.decoded(prefix + base64.encodebytes(PNG).decode()) == PNG


@pytest.mark.parametrize(
    "text", ["", "a lighthouse", "deadbeef" * 20, "data:text/plain,hello", "data:image/png;base64,?"]
)
def test_a_text_is_a_text(text: str) -> None:
    """Letters and digits alone make no file."""
    assert sniffing.decoded(text) is None


@given(st.binary(max_size=300), st.sampled_from(["image/png", "image/jpeg", "image/tiff", "image/webp", "image/avif"]))
def test_no_bytes_are_too_odd(data: bytes, content_type: str) -> None:
    """They come from anybody."""
    assert "/" in sniffing.content_type(data, content_type)
    sniffing.is_no_such_file(data, "/1.png")
    width, height = sniffing.pixels(io.BytesIO(data), content_type)
    assert (width is None) == (height is None)
