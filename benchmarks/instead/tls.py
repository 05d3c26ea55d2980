"""
TLS in front of a server, as a provider has it in front of its API: bytes go to and fro, nothing else is done.

    python -m benchmarks.instead.tls 8443 8787 FOLDER       from port 8443 to 8787, with FOLDER's cert.pem and key.pem
"""

import asyncio
import ssl
import sys
from pathlib import Path

HOST = "127.0.0.1"
CHUNK = 64 * 1024


async def serve(port: int, target: int, certificate: Path) -> None:
    """Serve until the process ends."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind_writer = await asyncio.open_connection(HOST, target)
            await asyncio.gather(copy(reader, behind_writer), copy(behind_reader, writer))
        except OSError:
            writer.close()

    async with await asyncio.start_server(accepted, HOST, port, ssl=context, backlog=1024) as server:
        print("listening", flush=True)
        await server.serve_forever()


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until one of both is closed, and close the other."""
    try:
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
