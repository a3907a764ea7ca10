"""Stores for tests: an S3 server on loopback that counts what is asked of it, and a line to it that can be cut."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

BUCKET = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "very/secret/words",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Requests:
    """What was asked of a server: (method, path, bytes sent back), and the order in which objects were written."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.seen: list[tuple[str, str, int]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = b"".join(self._app(environ, start_response))
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], len(body)))
        yield body

    def written(self) -> list[str]:
        """Returns the names of the objects that were written or removed, in that order; removed ones as ``-name``."""
        marks = {"PUT": "", "DELETE": "-"}
        return [marks[method] + path.split("/", 2)[-1] for method, path, _ in self.seen if method in marks]


@contextmanager
def serving() -> Iterator[tuple[str, Requests]]:
    """Yields the address of an S3 server with an empty bucket, and what is asked of it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any) -> None:
            pass

    requests = Requests(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, requests, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()


def emptied() -> Any:
    """Returns the server's objects, behind its API, with nothing but an empty bucket; it runs in this process."""
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    backend.reset()
    backend.create_bucket(BUCKET, "us-east-1")
    return backend


class Line:
    """A TCP relay to a server; while it is cut, open connections are gone and new ones are refused.

    Or it is silent: nothing that is sent arrives before the line is mended, and nobody is told.
    """

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self, *, is_silent: bool = False) -> None:
        if is_silent:
            self._flows.clear()
            return
        self._is_cut = True
        self._drop()

    def mend(self) -> None:
        self._is_cut = False
        self._flows.set()

    def close(self) -> None:
        self._listener.close()
        self._drop()

    def _drop(self) -> None:
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_relay, args=(source, target, self._flows), daemon=True).start()


def _relay(source: socket.socket, target: socket.socket, flows: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            flows.wait()
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
            end.close()


def client(address: str) -> Any:
    """Returns boto3's client of a server."""
    import boto3

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    key, secret = (os.environ.get(name, ENVIRONMENT[name]) for name in names)
    return boto3.client(
        "s3", endpoint_url=address, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
    )
