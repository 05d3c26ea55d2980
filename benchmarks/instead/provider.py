"""The provider that all of them call: the sandbox, behind TLS as the real one is."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import requests.utils
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline import sandbox
from pipeline.embedded import ports, procfile
from pipeline.embedded.logs import tail
from pipeline.embedded.processes import Process, Program, StackError, wait_until
from pipeline.sandbox import Sandbox

HOST = "127.0.0.1"
KEY = "benchmark"  # not the `sandbox` for which a stack would bring a sandbox of its own


@dataclass(frozen=True, slots=True)
class Provider:
    """Where it is, and the handles by which it is turned."""

    sandbox: Sandbox
    env: Mapping[str, str]  # of who calls it: where it is, the key, whom to trust

    def begin(self, generation_s: float) -> None:
        """Forget every task; those to come take so long, and there is money enough."""
        self.sandbox.reset()
        self.sandbox.faults(generation_s=generation_s)
        self.sandbox.set_balance(1e9)


@contextmanager
def running(room: Path, *, tls: bool) -> Iterator[Provider]:
    """Run one, until the block ends; its certificate and its log are kept in *room*."""
    with ExitStack() as cleanup:
        box = cleanup.enter_context(sandbox.running())
        if not tls:
            yield Provider(box, {"WAVESPEED_BASE_URL": box.url, "WAVESPEED_API_KEY": KEY})
            return
        held = ports.hold(None)
        cleanup.callback(held.close)
        certificate(room)
        bundle = room / "bundle.pem"  # the usual authorities and one more, as everybody has them: reading them is work
        bundle.write_text(Path(requests.utils.DEFAULT_CA_BUNDLE_PATH).read_text() + (room / "cert.pem").read_text())
        behind = str(urlsplit(box.url).port)
        program = Program(
            name="tls",
            argv=(sys.executable, "-m", "benchmarks.instead.tls", str(held.number), behind, str(room)),
            log=room / "tls.log",
            cwd=procfile.PROCFILE.parent,
        )
        process = Process(program)
        cleanup.callback(process.end)
        if not wait_until(lambda: "listening" in program.log.read_text(), 30.0):
            raise StackError(f"TLS did not start. It said:\n{tail(program.log)}")
        env = {"WAVESPEED_BASE_URL": f"https://{HOST}:{held.number}", "WAVESPEED_API_KEY": KEY}
        yield Provider(box, {**env, "SSL_CERT_FILE": str(bundle), "REQUESTS_CA_BUNDLE": str(bundle)})


def certificate(room: Path) -> None:
    """Make one for loopback that lasts for a week: `cert.pem` and `key.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (room / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (room / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
