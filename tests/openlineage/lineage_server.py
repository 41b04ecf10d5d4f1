"""A server on loopback that takes OpenLineage events and keeps them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class LineageServer:
    """Where it is, and what came.

    Attributes:
        url: of the server, without a path.
        status: what it answers; None: it takes the event and never answers, until it is closed.
        posted: (path, headers, event) of every request, in the order they came.
    """

    url: str
    status: int | None
    posted: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What came, as it came."""
        return [event for _, _, event in self.posted]

    def environment(self) -> dict[str, str]:
        """What makes the standard's client send here, without trying again where that fails."""
        transport = {"type": "http", "url": self.url, "retry": {"total": 0}}
        return {"OPENLINEAGE_DISABLED": "false", "OPENLINEAGE__TRANSPORT": json.dumps(transport)}


@contextmanager
def lineage_server(status: int | None = 201) -> Iterator[LineageServer]:
    """One that answers with `status` as long as the block lasts."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.posted.append((self.path, dict(self.headers), content))
            if server.status is None:
                closing.wait(60)
                return
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = LineageServer(f"http://127.0.0.1:{http.server_address[1]}", status)
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            closing.set()
            http.shutdown()
            thread.join()
