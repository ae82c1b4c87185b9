"""A folder of results in the browser: served on this machine alone, to whoever has the token."""

import secrets
from functools import partial
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final
from urllib.parse import quote, unquote, urlsplit

from osteomorph.errors import InputError

HOST = "127.0.0.1"

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
}
"""What is served; volumes and transforms are not."""

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@final
class Server(ThreadingHTTPServer):
    """Serves files of ``folder`` under ``/TOKEN/``, on the loopback address, on a free port unless one is given.

    Every request must carry the token as the first part of its path and this server's own address as its Host, so that
    neither another user of the machine nor a page in the browser (DNS rebinding) can read a result.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.resolve()
        self.token = secrets.token_urlsafe(32)
        super().__init__((HOST, port), partial(_Handler))

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def url(self, file: str) -> str:
        return f"{self.origin}/{self.token}/{quote(file)}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is nothing to tell of."""


@final
class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "osteomorph"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, body: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        port = self.server.server_address[1]
        if len(hosts) != 1 or hosts[0].lower() not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._refuse(HTTPStatus.FORBIDDEN)
        target = allowed(self.server.folder, self.server.token, self.path)
        if target is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            content = target.read_bytes()
        except OSError:
            return self._refuse(HTTPStatus.NOT_FOUND)
        self._send(HTTPStatus.OK, KINDS[target.suffix.lower()], content, body)

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, "text/plain; charset=utf-8", status.phrase.encode(), self.command != "HEAD")

    def _send(self, status: HTTPStatus, kind: str, content: bytes, body: bool) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: requests hold the token."""


def allowed(folder: Path, token: str, asked: str) -> Path | None:
    """The file of ``folder`` that a request's path names, links followed; None for anything else.

    folder: resolved. asked: ``/TOKEN/path``, percent-encoded as it came.
    """
    try:
        path = urlsplit(asked).path
        given, _, rest = path.removeprefix("/").partition("/")
        if not compare_digest(given.encode(), token.encode()):
            return None
        name = unquote(rest, errors="strict")
        if "\0" in name or "\\" in name or any(part.startswith(".") for part in name.split("/")):
            return None
        target = (folder / name.lstrip("/")).resolve()
        known = target.suffix.lower() in KINDS and target.is_file()
    except (ValueError, OSError):
        return None
    return target if known and target.is_relative_to(folder) else None


def first_page(folder: Path) -> str:
    """The page to open: the cohort's, or the case's. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Give an output folder of osteomorph register.")
    for name in ("cohort.html", "report.html"):
        if (folder / name).is_file():
            return name
    raise InputError(f"{folder} holds no report.html or cohort.html. Write one with osteomorph report {folder}.")
