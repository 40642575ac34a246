"""The page, on this machine's loopback address alone."""

import errno
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


HOST = "127.0.0.1"
# Without these, a browser gives WebAssembly no threads.
HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class PageServer(ThreadingHTTPServer):
    """
    Serves a folder at `http://127.0.0.1:PORT`.

    Args:
        folder (`Path`): the page.
        port (`int`): 0 for any that is free: `address` says which.

    Raises:
        `OSError`: the port is in use.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int):
        try:
            super().__init__((HOST, port), partial(_PageHandler, directory=str(folder)))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "in use" if error.errno == errno.EADDRINUSE else "not for this user"
            raise OSError(f"`port` {port} of {HOST} is {reason}: give another, or 0 for any that is free") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A tab that was closed is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}"


class _PageHandler(SimpleHTTPRequestHandler):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def send_head(self) -> Any:
        """Only to pages of this address: a name of somebody else may come to point at it, for a page of theirs to read it."""
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            self.send_error(403)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        for name, value in {**HEADERS, "Cache-Control": "no-cache"}.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing: what a page loads is of no interest."""
