"""Blobs by content hash: immutable, public, resumable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from cloud.http.problems import Refusal
from device_runtime.bundle import BlobStore
from device_runtime.delta import delta_name

_CHUNK = 256 << 10
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)
"""One range. Others, which a server may ignore, and numbers that no file reaches do not match."""


def serve_blob(request: Request, sha256: str, blobs: BlobStore) -> Response:
    """The blob, or the one range of it that is asked for.

    Raises:
        Refusal: 404, 416.
    """
    path = blobs.path(sha256) if re.fullmatch("[0-9a-f]{64}", sha256) else None
    if path is None or not path.is_file():
        raise Refusal(404, "No such blob", "blobs are named by 64 hex digits; pull the bundle again for current names")
    size, etag = path.stat().st_size, f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "public, max-age=31536000, immutable"}
    if _knows(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = _RANGE.fullmatch(request.headers.get("range", "")) if request.method == "GET" else None
    bounds = _bounds(wanted, size) if wanted and request.headers.get("if-range", etag) == etag else None
    if bounds:
        start, end = bounds
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    kind = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_read(path, start, end), status_code=status, headers=headers, media_type=kind)


def serve_delta(request: Request, blobs: BlobStore) -> Response:
    """The delta between the two files that the path names.

    Raises:
        Refusal: 404, 416.
    """
    base, target = request.path_params["base"], request.path_params["target"]
    return serve_blob(request, delta_name(base, target), blobs)


def _knows(if_none_match: str, etag: str) -> bool:
    return any(tag.strip().removeprefix("W/") in ("*", etag) for tag in if_none_match.split(","))


def _bounds(wanted: re.Match[str], size: int) -> tuple[int, int] | None:
    """Start and end; None if the range ends before it starts, which is to be ignored. Raises: Refusal: 416."""
    first, last, suffix = wanted.groups()
    if suffix:
        start, end = max(size - int(suffix), 0), size
    elif last and int(last) < int(first):
        return None
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    if start >= end:
        raise Refusal(
            416, "The range is outside the blob", f"it has {size} bytes", {"Content-Range": f"bytes */{size}"}
        )
    return start, end


def _read(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            chunk = file.read(min(_CHUNK, end - start))
            if not chunk:  # the stated length cannot be met: cut the connection, the client resumes
                raise OSError(f"the blob {path.name[:12]}… is shorter than it was")
            start += len(chunk)
            yield chunk
