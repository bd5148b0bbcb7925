"""The files of the dashboard, as they are in the package."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = files(__package__) / "static"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Return what may be asked for and its type. Nothing outside of it is ever opened."""
    names: dict[str, str] = {}
    for folder in ("", "vendor/"):
        for entry in (FOLDER / folder).iterdir() if folder else FOLDER.iterdir():
            suffix = entry.name[entry.name.rfind(".") :]
            if entry.is_file() and suffix in TYPES:
                names[folder + entry.name] = TYPES[suffix]
    return names


def page(request: Request, name: str) -> Response | None:
    """Return a file, or that the browser has it already; None: there is no such file.

    Read at every request: half a megabyte that is wanted once a day does not stay in memory.
    """
    kind = _names().get(name)
    if kind is None:
        return None
    content = (FOLDER / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
