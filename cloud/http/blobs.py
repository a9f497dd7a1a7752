"""Blobs by content hash: immutable, public, resumable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from cloud.http.problems import Refusal
from device_runtime.bundle import BlobStore

_CHUNK = 256 << 10
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def serve_blob(request: Request, sha256: str, blobs: BlobStore) -> Response:
    """The blob, or the one range of it that is asked for.

    Raises:
        Refusal: 404, 416.
    """
    path = blobs.path(sha256)
    if not re.fullmatch("[0-9a-f]{64}", sha256) or not path.is_file():
        raise Refusal(404, "No such blob", "blobs are named by 64 hex digits; pull the bundle again for current names")
    size, etag = path.stat().st_size, f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "public, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted and request.headers.get("if-range", etag) == etag:
        start, end = _bounds(wanted, size)
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    kind = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_read(path, start, end), status_code=status, headers=headers, media_type=kind)


def _bounds(wanted: re.Match[str], size: int) -> tuple[int, int]:
    first, last = wanted.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, end = max(size - int(last or 0), 0), size
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
            start += len(chunk)
            yield chunk
