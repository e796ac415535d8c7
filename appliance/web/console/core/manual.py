"""The manual under `/docs`, as scripts/docs built it. Anyone may read it, also without a session."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.addresses import PREFIX
from appliance.build import find_folder
from appliance.errors import NotFound
from appliance.web.console.core.render import ASSET_TYPES

FOLDER = "manual"
INDEX = "index.html"
MEDIA_TYPES = {**ASSET_TYPES, ".html": "text/html; charset=utf-8", ".json": "application/json", ".png": "image/png"}
"""Media types of the manual's files. Other files are not sent."""


class _File(NamedTuple):
    """A file that was read. `packed` is its content with gzip, or None for a picture."""

    content: bytes
    packed: bytes | None
    tag: str


class Manual:
    """The files of the manual. Their names are read once, so that a request can name one of them only.

    Each is read and packed at its first request, so that further ones cost little.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.suffix in MEDIA_TYPES and path.is_file() and not path.is_symlink()
        }
        self._read: dict[Path, _File] = {}

    async def respond(self, request: Request) -> Response:
        """Return the response with a file, without a thread. The address of a folder leads to its page.

        Raises: NotFound for another name, or if the manual was not built.
        """
        if not self._files:
            raise NotFound(
                "manual: this installation has none, because it was not built. In the folder of the source, run "
                "scripts/docs, then start the service again"
            )
        name = request.path_params["name"]
        if f"{name}/{INDEX}" in self._files:
            return RedirectResponse(f"{PREFIX}{name}/", 301)
        path = self._files.get(f"{name}{INDEX}" if not name or name.endswith("/") else name)
        if path is None:
            raise NotFound("manual: expected one of its pages, got another address. Its first page is /docs/")
        file = self._read.get(path) or self._read.setdefault(path, _read_file(path))
        headers, content = {"Cache-Control": "no-cache", "ETag": file.tag, "Vary": "Accept-Encoding"}, file.content
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", "") and file.packed is not None:
            content, headers["Content-Encoding"] = file.packed, "gzip"
        return Response(content, media_type=MEDIA_TYPES[path.suffix], headers=headers)


def _read_file(path: Path) -> _File:
    content = path.read_bytes()
    packed = None if path.suffix == ".png" else gzip.compress(content, 6, mtime=0)
    return _File(content, packed, f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def manual_routes(folder: Path | None = None) -> list[Route]:
    """Return the routes of the manual in a folder; by default the one of this build."""
    manual = Manual(folder or find_folder(FOLDER))
    return [Route("/docs", _first_page), Route(f"{PREFIX}{{name:path}}", manual.respond)]


def _first_page(request: Request) -> Response:
    return RedirectResponse(PREFIX, 301)
