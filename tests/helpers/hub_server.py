"""A server on loopback that answers as the Hugging Face hub does for one public data set."""

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Yields the URL of a hub with the data set OWNER/NAME, which has these files."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            file = path.removeprefix(resolve).partition("/")[2]
            if path.startswith(resolve) and file in files:
                self._send(200, files[file])
            elif path.startswith(f"{api}/tree/"):
                self._send_json(200, [entry(file) for file in files])
            elif path == api or path.startswith(f"{api}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                said = {"id": name, "sha": SHA, "private": False, "siblings": siblings}
                self._send_json(200, said | {"tags": [], "downloads": 0, "gated": False})
            else:
                self._send_json(404, {"error": "not found"})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(body)["paths"]
            self._send_json(200, [entry(file) for file in asked if file in files])

        def _send_json(self, code: int, said: object) -> None:
            self._send(code, json.dumps(said).encode())

        def _send(self, code: int, content: bytes) -> None:
            wanted = self.headers.get("Range") if code == 200 else None
            first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
            piece = content[int(first) : int(last or len(content)) + 1]
            self.send_response(206 if wanted else code)
            if wanted:
                place = f"{first}-{int(first) + len(piece) - 1}/{len(content)}"
                self.send_header("Content-Range", f"bytes {place}")
            if code == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", str(len(piece)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(piece)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    def entry(file: str) -> dict[str, object]:
        return {"type": "file", "path": file, "size": len(files[file]), "oid": SHA}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
