"""A real HTTP server over a folder, which counts what it sends and can be told to misbehave."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FileServer:
    root: Path
    url: str = ""
    latency: float = 0.0
    """Seconds before each answer."""
    serves_ranges: bool = True
    faults: list[str] = field(default_factory=list)
    """What the next requests for tars meet: a status, "stall", "drip", "drop", "truncate" or "flip"."""
    requests: list[str] = field(default_factory=list)
    """Paths, in the order of their requests."""
    bytes_sent: int = 0
    """Of bodies."""
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.at_once = 0
        self.sockets: list[socket.socket] = []

    def count(self, ending: str) -> int:
        """Requests for files of that ending."""
        return sum(path.endswith(ending) for path in self.requests)

    def reset(self) -> None:
        self.requests.clear()
        self.bytes_sent = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for its header's acknowledgement
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.server.files.sockets.append(self.connection)

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._empty(404)

    def do_GET(self) -> None:
        files = self.server.files
        with files.lock:
            files.requests.append(self.path)
            files.at_once += 1
            files.most_at_once = max(files.most_at_once, files.at_once)
            fault = files.faults.pop(0) if files.faults and self.path.endswith(".tar") else None
        try:
            self._answer(files, fault)
        finally:
            with files.lock:
                files.at_once -= 1

    def _answer(self, files: FileServer, fault: str | None) -> None:
        time.sleep(files.latency)
        path = files.root / self.path.lstrip("/")
        if fault == "stall":
            files.closing.wait()
            self.close_connection = True
        elif fault == "drop":
            self.close_connection = True
        elif fault is not None and fault.isdecimal():
            self._empty(int(fault))
        elif not path.is_file():
            self._empty(404)
        else:
            self._send(files, path.read_bytes(), fault)

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, files: FileServer, whole: bytes, fault: str | None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        body, status = whole, 200
        if wanted and files.serves_ranges:
            start, last = int(wanted[1]), int(wanted[2] or len(whole) - 1)
            if start >= len(whole):
                return self._empty(416)
            body, status = whole[start : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "flip":
            body = body[:700] + bytes([body[700] ^ 1]) + body[701:]
        if fault == "drip":
            self.wfile.write(body[:1])
            files.closing.wait()
        if fault in ("truncate", "drip"):
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        with files.lock:
            files.bytes_sent += len(body)
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close, so that none outlives its test
    files: FileServer

    def handle_error(self, *_arguments: object) -> None:
        pass  # a client that has gone away


@contextmanager
def serve(root: Path) -> Iterator[FileServer]:
    """Serve `root` on a port of this machine while the block runs."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.files = FileServer(root, f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.files
        finally:
            server.files.closing.set()
            server.shutdown()
            thread.join()
            for connection in server.files.sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # closed already
