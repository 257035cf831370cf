"""What networks do to requests."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Wire:
    """A TCP port before a server that passes requests on, and may lose the answer to a run's creation.

    Args:
        late: seconds after which the request whose client was hung up on reaches the server; None: at once.
        own: its port; 0 for a free one. lost: 1 to lose nothing.
    """

    def __init__(self, port: int, late: float | None = None, *, own: int = 0, lost: int = 0) -> None:
        wire, self.lost, self.threads = self, lost, list[threading.Thread]()
        self.asked: list[tuple[str, bytes]] = []
        """Path and body of each request."""

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                wire.asked.append((self.path, body))

                def ask() -> tuple[int, bytes]:
                    server = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                    server.request(self.command, self.path, body, dict(self.headers))
                    answer = server.getresponse()
                    return answer.status, answer.read()

                if self.path.endswith("/runs/create") and b'"trial"' in body and not wire.lost:
                    wire.lost += 1
                    self.close_connection = True
                    if late is None:
                        ask()
                    else:
                        wire.threads.append(threading.Timer(late, ask))
                        wire.threads[-1].start()
                    return
                status, content = ask()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", own), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
