"""An object store in this process, on loopback or at another address, that misbehaves as told.

It serves the files of a folder to plain HTTP and, in path style, to clients of S3 and of Google's
XML API: what is `folder/bucket/set/name` lies under `http://127.0.0.1:PORT/bucket/set/name`.
Signatures are not checked.

    with FaultStore(folder) as store:
        store.faults.append(Fault("*.tar", after=2, times=1, cut=1000))
"""

import contextlib
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.stores import hold_port

PIECES = 20
"""A second, of a slow answer."""


@dataclass
class Fault:
    """What goes wrong, and with which requests.

    Of several that match a request, the first that has not run out applies.
    """

    name: str = "*"
    """Pattern of the object's path without its leading slash, as `fnmatch` reads it."""
    method: str = "*"
    after: int = 0
    """So many requests that match go well first."""
    times: float = float("inf")
    """So many that match then go wrong."""

    status: int | None = None
    """Answer this instead."""
    code: str = ""
    """S3's word for the error, in the XML that goes with `status`."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent as well: Retry-After, or Location."""
    instead: str | None = None
    """The path of the object whose bytes are sent."""
    cut: int | None = None
    """Close the connection after so many bytes of the body, which the headers say is longer."""
    rate: float | None = None
    """Send so many bytes a second."""
    stall: float = 0
    """Seconds of silence before the answer; with `cut`, at that place."""
    gone: float | None = None
    """Close every connection, unanswered, and refuse new ones for so many seconds."""

    matched: int = 0

    def applies(self, method: str, name: str) -> bool:
        """Whether it does to this request, which is counted."""
        if not (fnmatchcase(name, self.name) and fnmatchcase(method, self.method)):
            return False
        self.matched += 1
        return self.after < self.matched <= self.after + self.times


@dataclass(frozen=True)
class Request:
    """One request and what was answered."""

    method: str
    name: str
    """The object's path, without its leading slash."""
    range: str | None
    status: int
    """0 if nothing was."""
    signed: bool
    """Whether an Authorization header came."""


class FaultStore:
    """Serves `folder` until it is closed."""

    faults: list[Fault]
    requests: list[Request]
    url: str
    """Of the folder; for S3, the endpoint."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder, self.address = folder, address
        self.faults = []
        self.requests = []
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        # For as long as the store lives: nobody else must get the port while it is gone
        self._port = hold_port(address)
        self.port: int = self._port.getsockname()[1]
        self.url = f"http://{address}:{self.port}"
        self._server: _Server | None = None
        self.come_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed.set()
        self.go_away()
        self._port.close()

    def go_away(self) -> None:
        """Close every connection; new ones are refused from here on."""
        with self.lock:
            server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):  # the client closed it already
                    connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Answer again, on the same port."""
        with self.lock:
            if self._server is None:
                self._server = server = _Server(self)
                threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def go_away_for(self, seconds: float) -> None:
        def wait() -> None:
            if not self.closed.wait(min(seconds, threading.TIMEOUT_MAX)):
                self.come_back()

        self.go_away()
        threading.Thread(target=wait, daemon=True).start()

    def fault(self, method: str, name: str) -> Fault:
        """What goes wrong with this request; a fault without anything if nothing does."""
        with self.lock:
            # Each counts for itself, so all are asked
            applying = [fault for fault in self.faults if fault.applies(method, name)]
        return applying[0] if applying else Fault()


class _Server(ThreadingHTTPServer):
    def __init__(self, store: FaultStore) -> None:
        self.store = store
        super().__init__((store.address, store.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.store.lock:
            self.store.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.store.lock:
            self.store.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the store's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path).strip("/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        store = self.server.store
        fault = store.fault(self.command, name)
        if fault.gone is not None:
            self._log(name, 0)
            store.go_away_for(fault.gone)
            return
        if fault.cut is None:
            store.closed.wait(fault.stall)
        if fault.status is not None:
            answer = _Answer(fault.status, _error(fault.code) if fault.code else b"")
        elif self.command == "PUT":
            google = self.headers.get("x-goog-if-generation-match") == "0"
            answer = _put(store, name, sent, google or self.headers.get("If-None-Match") == "*")
        elif self.command == "POST":
            answer = _delete(store.folder / name, sent)
        elif "list-type" in query:
            answer = _list(store.folder / name, query.get("prefix", ""), query.get("delimiter"))
        else:
            answer = self._get(store.folder / (fault.instead or name))
        answer.headers |= fault.headers
        self._log(name, answer.status)
        self._send(answer, fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _log(self, name: str, status: int) -> None:
        signed = "Authorization" in self.headers
        request = Request(self.command, name, self.headers.get("Range"), status, signed)
        self.server.store.requests.append(request)

    def log_message(self, format: str, *arguments: object) -> None: ...

    def _get(self, file: Path) -> _Answer:
        if not file.is_file():
            return _Answer(404, _error("NoSuchKey"))
        data, etag = file.read_bytes(), _etag(file)
        headers = {"ETag": etag, "Last-Modified": formatdate(file.stat().st_mtime, usegmt=True)}
        if self.headers.get("If-None-Match") == etag:
            return _Answer(304, b"", headers)
        if self.headers.get("If-Match", etag) != etag:
            return _Answer(412, _error("PreconditionFailed"))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return _Answer(200, data, headers)
        first, last = asked.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= end:
            return _Answer(416, _error("InvalidRange"))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return _Answer(206, data[start:end], headers)

    def _send(self, answer: _Answer, fault: Fault) -> None:
        self.send_response(answer.status)
        length = {} if answer.status == 304 else {"Content-Length": str(len(answer.body))}
        for header in (length | answer.headers).items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "HEAD":
            return
        self._send_body(answer.body[: fault.cut], fault.rate)
        if fault.cut is not None:
            self.server.store.closed.wait(fault.stall)
            self.close_connection = True

    def _send_body(self, body: bytes, rate: float | None) -> None:
        if rate is None:
            self.wfile.write(body)
            return
        piece = max(int(rate / PIECES), 1)
        for start in range(0, len(body), piece):
            self.wfile.write(body[start : start + piece])
            if self.server.store.closed.wait(piece / rate):
                return


def _etag(file: Path) -> str:
    found = file.stat()
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}"'


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()


def _put(store: FaultStore, name: str, data: bytes, new: bool) -> _Answer:
    file = store.folder / name
    with store.lock:
        if new and file.exists():
            return _Answer(412, _error("PreconditionFailed"))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part")
        part.write_bytes(data)
        part.replace(file)
        return _Answer(200, b"", {"ETag": _etag(file)})


def _delete(bucket: Path, request: bytes) -> _Answer:
    """DeleteObjects, the one POST of ours."""
    keys = re.findall(r"<Key>([^<]+)</Key>", request.decode())
    for key in keys:
        (bucket / key).unlink(missing_ok=True)
    deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
    body = f"<?xml version='1.0'?><DeleteResult>{deleted}</DeleteResult>"
    return _Answer(200, body.encode(), {"Content-Type": "application/xml"})


def _list(bucket: Path, prefix: str, delimiter: str | None) -> _Answer:
    """ListObjectsV2, in one page."""
    contents, prefixes = [], set()
    for file in sorted(path for path in bucket.rglob("*") if path.is_file()):
        key = file.relative_to(bucket).as_posix()
        if not key.startswith(prefix):
            continue
        if delimiter and delimiter in key[len(prefix) :]:
            prefixes.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
            continue
        found = file.stat()
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
        contents.append(
            f"<Contents><Key>{escape(key)}</Key><Size>{found.st_size}</Size>"
            f"<LastModified>{when}</LastModified><ETag>{escape(_etag(file))}</ETag></Contents>"
        )
    listed = "".join(f"<Prefix>{escape(name)}</Prefix>" for name in sorted(prefixes))
    common = f"<CommonPrefixes>{listed}</CommonPrefixes>" if listed else ""
    body = f"<?xml version='1.0'?><ListBucketResult>{''.join(contents)}{common}</ListBucketResult>"
    return _Answer(200, body.encode(), {"Content-Type": "application/xml"})
