"""Files that pages use: each under a name that holds its digest, so that a browser keeps it for good."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import NotFound

STATIC = Path(__file__).resolve().parents[1] / "static"
FOREVER = "public, max-age=31536000, immutable"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """`packed`: the same with gzip, as every browser takes it."""

    name: str
    kind: str
    content: bytes
    packed: bytes


class Assets:
    """Read once, at the start."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._names: dict[str, str] = {}
        self._assets: dict[str, Asset] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix in KINDS:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()[:16]
                name = f"{path.stem}.{digest}{path.suffix}"
                self._names[path.name] = f"/static/{name}"
                self._assets[name] = Asset(name, KINDS[path.suffix], content, gzip.compress(content, 9, mtime=0))

    def url(self, name: str) -> str:
        """Of a file by its plain name; KeyError for one that is not there."""
        return self._names[name]

    def respond(self, request: Request) -> Response:
        asset = self._assets.get(request.path_params["name"])
        if asset is None:
            raise NotFound("file: expected one of the console, got another name")
        headers = {"Cache-Control": FOREVER, "Vary": "Accept-Encoding"}
        taken = {part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")}
        if "gzip" in taken:
            return Response(asset.packed, media_type=asset.kind, headers={**headers, "Content-Encoding": "gzip"})
        return Response(asset.content, media_type=asset.kind, headers=headers)
