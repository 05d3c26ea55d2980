"""Files that `pipeline enqueue --download` fetches: by the guarded client, whole or not at all."""

import asyncio
from pathlib import Path

from pipeline.addresses import Network
from pipeline.cli.download import fetch
from pipeline.outbound import Outbound
from tests.test_outbound import INSIDE, US
from tests.wire import says, wire


def fetched(url: str, folder: Path, *allow: Network) -> list[str]:
    """What went wrong with the one output of a job, and a text beside it."""
    told: list[int] = []
    outputs = [{"index": 0, "source_url": url, "content_type": None}, {"index": 1, "source_url": None, "value": "yes"}]
    wrong = asyncio.run(
        fetch(Outbound(allow), [{"id": "job", "outputs": outputs}], folder, told=lambda: told.append(1))
    )
    assert len(told) == 2
    return wrong


def test_a_file_is_fetched_from_where_one_may_go_only(tmp_path: Path) -> None:
    """Its address is the provider's word: nothing on the operator's own machine or network is read for it."""
    with wire(says(200, b"secret"), host=INSIDE) as inside, wire(says(302, Location=f"{inside.url}/a")) as server:
        assert fetched(f"{server.url}/a.png?sig=1", tmp_path) == [
            f"job, output 0: {server.url}/a.png: the address must not lead to 127.0.0.1, a loopback address."
        ]
        assert server.untouched
        (wrong,) = fetched(f"{server.url}/a.png?sig=1", tmp_path, US)
        assert wrong.startswith(f"job, output 0: {server.url}/a.png redirects to {inside.url}/a: ")
        assert inside.untouched
        assert [path.name for path in tmp_path.iterdir()] == ["job-1.txt"]
        server.handler = says(200, b"hello")
        assert fetched(f"{server.url}/a.png?sig=1", tmp_path, US) == []
    assert (tmp_path / "job-0.png").read_bytes() == b"hello"
