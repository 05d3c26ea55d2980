"""Where files are kept: a folder, and a bucket of a real S3 server on loopback. Both keep the same promises."""

import asyncio
import base64
import io
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageFailed
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.storage import PIECE_BYTES, Storage
from pipeline.web import create_app
from tests.conftest import Caller
from tests.factories import kept

KEY = "files/ab/abcdef"


def keep(storage: Storage, content: bytes, key: str = KEY) -> None:
    asyncio.run(storage.keep(key, io.BytesIO(content), "image/png"))


def read(storage: Storage, key: str = KEY) -> bytes | None:
    file = storage.open_now(key)
    return None if file is None else bytes(file.read())


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    """Give a folder whose name has to be encoded in an address."""
    return Storage((tmp_path / "the files").as_uri())


@pytest.fixture(scope="module")
def bucket() -> Iterator[Storage]:
    """Give a bucket, with a prefix."""
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="pictures")
        yield Storage("s3://pictures/of/shop")
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Give each kind."""
    found: Storage = request.getfixturevalue(request.param)
    return found


def test_what_was_kept_is_there_whole_until_it_is_deleted(storage: Storage) -> None:
    """Large files too, which go in pieces; parts can be read; and deleting twice is fine."""
    content = os.urandom(PIECE_BYTES + 12345)
    keep(storage, content)
    keep(storage, content)
    assert asyncio.run(storage.size(KEY)) == len(content)
    file = storage.open_now(KEY)
    assert file
    file.seek(PIECE_BYTES)
    assert bytes(file.read(99)) == content[PIECE_BYTES : PIECE_BYTES + 99]
    storage.copy_now(KEY, "quarantine/ab/abcdef")
    storage.delete_now(KEY)
    storage.delete_now(KEY)
    assert asyncio.run(storage.size(KEY)) is None
    assert read(storage, "quarantine/ab/abcdef") == content
    with pytest.raises(StorageFailed):
        storage.copy_now(KEY, "files/ab/other")
    storage.try_now()


def test_a_bucket_gives_an_address_where_the_file_can_be_had_as_what_it_is(bucket: Storage) -> None:
    """Whoever has it needs no key of ours, for some minutes."""
    keep(bucket, b"a picture", "files/cd/picture")
    address = bucket.signed_now("files/cd/picture")
    assert address
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"a picture"
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Disposition"] == "inline"


def test_callers_are_led_to_the_bucket_or_served_from_it(
    bucket: Storage, make_rt: Callable[..., Runtime], caller: Caller
) -> None:
    """The large bytes need not pass through the web server; but a bucket that callers cannot reach may have to."""
    content = os.urandom(300_000)
    rt = make_rt(archive_url="s3://pictures/of/shop")
    path = f"/v1/jobs/{kept(rt, caller.service, content)}/outputs/0"
    key = {"Authorization": f"Bearer {caller.key}"}
    led = create_app(rt).test_client().get(path, headers=key)
    assert (led.status_code, led.headers["Cache-Control"]) == (302, "no-store")
    with urllib.request.urlopen(led.headers["Location"]) as answer:
        assert answer.read() == content
    through = create_app(make_rt(archive_url="s3://pictures/of/shop", archive_redirect=False)).test_client()
    assert through.get(path, headers=key).data == content
    part = through.get(path, headers={**key, "Range": "bytes=-1000"})
    assert (part.status_code, part.data) == (206, content[-1000:])
    encoded = through.get(f"{path}?format=base64", headers=key).data
    assert base64.b64decode(encoded, validate=True) == content


def test_what_a_killed_writer_left_is_cleared_away_and_nothing_else(folder: Storage) -> None:
    """Nobody could see it, but the disk would fill."""
    keep(folder, b"a picture")
    assert folder.folder
    left, fresh = folder.folder / f"{KEY}#1", folder.folder / f"{KEY}#2"
    left.write_bytes(b"hal")
    fresh.write_bytes(b"hal")
    os.utime(left, (0, 0))
    assert folder.signed_now(KEY) is None
    assert folder.tidy_now() == 1
    assert (left.exists(), fresh.exists(), read(folder)) == (False, True, b"a picture")


def test_a_file_that_was_cut_by_a_full_disk_is_written_again(folder: Storage) -> None:
    """Half a file under a key would be served for good."""
    assert folder.folder
    place = folder.folder / KEY
    place.parent.mkdir(parents=True)
    place.write_bytes(b"a pic")
    keep(folder, b"a picture")
    assert read(folder) == b"a picture"


def test_a_place_that_cannot_be_used_says_so_and_its_keys_stay_secret(tmp_path: Path) -> None:
    """At once where it is plainly wrong, else when it is first used."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="ARCHIVE_URL"):
        Storage((tmp_path / "file" / "folder").as_uri())


@pytest.mark.parametrize(
    ("url", "dyno", "why"),
    [
        ("file:///var/files", "web.1", "dyno"),
        (None, "web.1", "dyno"),
        ("off", None, "off"),
        ("s3://pictures/prefix", "web.1", None),
        ("gs://pictures", None, None),
        ("az://pictures", None, None),
        ("file:///var/files", None, None),
    ],
)
def test_a_dyno_keeps_files_in_buckets_only(url: str | None, dyno: str | None, why: str | None) -> None:
    """Its disk is private and vanishes: files would be lost, and nobody would know."""
    settings = load({"DATABASE_URL": "postgres://x/x", "ARCHIVE_URL": url or "", "DYNO": dyno or ""})
    if why is None:
        assert settings.archives_to == url
        return
    with pytest.raises(ConfigError, match=why):
        _ = settings.archives_to


@pytest.mark.parametrize(
    "url", ["files", "file://host/x", "file:x", "s3:///x", "ftp://x/y", "s3://key:secret@bucket", "s3://b?x=1"]
)
def test_an_address_of_no_archive_is_refused_at_the_start(url: str) -> None:
    """Else the first output would find out."""
    with pytest.raises(ConfigError, match="ARCHIVE_URL") as error:
        load({"DATABASE_URL": "postgres://x/x", "ARCHIVE_URL": url})
    assert "secret" not in error.value.detail
