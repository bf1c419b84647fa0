"""TLS is verified; the usual variables choose the certificates and the proxy."""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "provider.test"
"""A host name that only our proxy can resolve."""
CLIENT = """
import asyncio, sys
from ondine_core import ModelSpec, OndineError
from ondine_core.providers import connect
from ondine_core.types.values import Call, Message

async def main():
    model = connect(ModelSpec("openai_compatible/m", base_url=sys.argv[1], api_key="a key", timeout_s=10))
    try:
        print((await model(Call((Message("user", "hello"),)))).text)
    except OndineError as error:
        print(type(error).__name__, error)
    finally:
        await model.aclose()

asyncio.run(main())
"""


class Completion(BaseHTTPRequestHandler):
    """Answers every call."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"choices": [{"message": {"content": "answered over TLS"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@dataclass(frozen=True)
class Site:
    """A provider behind TLS: its port, and the file of its certificate authority."""

    port: int
    authority: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A provider for `localhost` and `HOST`, with a certificate of its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority nobody knows")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    authority, private = folder / "authority.pem", folder / "key.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completion)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with served(server):
        yield Site(server.server_address[1], authority)


@contextmanager
def served(server: ThreadingTCPServer | ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def proxy(to_port: int) -> Iterator[tuple[str, list[str]]]:
    """A proxy that tunnels everything to `to_port`, and the hosts that it was asked for."""
    asked: list[str] = []

    class Tunnel(StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline().decode().strip())
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with socket.create_connection(("127.0.0.1", to_port)) as there:
                back = threading.Thread(target=pump, args=(there, self.connection))
                back.start()
                pump(self.connection, there)
                back.join()

    server = ThreadingTCPServer(("127.0.0.1", 0), Tunnel)
    with served(server):
        yield f"http://127.0.0.1:{server.server_address[1]}", asked


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def call(url: str, **variables: str) -> str:
    """The result of a separate process that calls the provider at `url`."""
    usual = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
    kept = {name: value for name, value in os.environ.items() if name.upper() not in usual}
    command = [sys.executable, "-c", CLIENT, url]
    return subprocess.run(command, env=kept | variables, check=True, capture_output=True, text=True).stdout.strip()


def test_untrusted_certificate_is_fatal(site: Site) -> None:
    """No request can succeed until it is fixed, and the message says where to look."""
    outcome = call(f"https://localhost:{site.port}/v1")
    assert outcome.startswith("FatalError The certificate of 'localhost:")
    assert "is not trusted (self-signed certificate)" in outcome
    assert "set SSL_CERT_FILE" in outcome


def test_ssl_cert_file_names_the_trusted_authority(site: Site) -> None:
    """`SSL_CERT_FILE` names the certificates to trust."""
    assert call(f"https://localhost:{site.port}/v1", SSL_CERT_FILE=str(site.authority)) == "answered over TLS"


def test_a_certificate_for_another_name_is_refused(site: Site) -> None:
    """A trusted authority does not help if the name differs."""
    outcome = call(f"https://127.0.0.1:{site.port}/v1", SSL_CERT_FILE=str(site.authority))
    assert "is not trusted (IP address mismatch" in outcome
    assert "check base_url" in outcome


def test_calls_go_through_the_proxy_that_a_variable_names(site: Site) -> None:
    """`HTTPS_PROXY` is used and sees only the host name; TLS is end to end."""
    with proxy(site.port) as (url, asked):
        outcome = call(f"https://{HOST}/v1", SSL_CERT_FILE=str(site.authority), HTTPS_PROXY=url)
        untrusted = call(f"https://{HOST}/v1", HTTPS_PROXY=url)
        around = call(f"https://{HOST}/v1", HTTPS_PROXY=url, NO_PROXY=f"localhost,{HOST}")
        local = call(f"https://localhost:{site.port}/v1", SSL_CERT_FILE=str(site.authority), HTTPS_PROXY=url)
    assert outcome == "answered over TLS"
    assert untrusted.startswith(f"FatalError The certificate of {HOST!r} is not trusted")
    assert around.startswith("TransientError Cannot connect to")
    assert local == "answered over TLS"
    assert asked == [f"CONNECT {HOST}:443 HTTP/1.1"] * 2
