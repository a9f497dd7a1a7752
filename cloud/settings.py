"""`HOME/server.toml`: what a server uses instead of the embedded defaults. There need not be such a file.

    catalog = "postgresql+psycopg://coda@db.internal/coda"   # SQLAlchemy URL; SQLite in HOME if not given
    blobs = "s3://bucket/prefix"                             # fsspec URL; a folder in HOME if not given

    [limits]                                                 # fields of cloud.http.limits.ServerLimits
    device_requests_per_minute = 60

CODA_CATALOG and CODA_BLOBS in the environment override the file: passwords are better kept there.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from device_runtime.errors import InputError


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """catalog, blobs: URLs; "" is the embedded default. limits: name -> number."""

    catalog: str = ""
    blobs: str = ""
    limits: dict[str, float] = {}


def load_settings(home: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises: InputError: the file cannot be read, or does not say what it should."""
    path = home / "server.toml"
    found = Settings()
    if path.exists():
        try:
            found = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Settings)
        except (OSError, ValueError, msgspec.ValidationError) as error:
            raise InputError(f"{path} cannot be used: {error}; `catalog`, `blobs` and `[limits]` may be set") from None
    catalog, blobs = environment.get("CODA_CATALOG", ""), environment.get("CODA_BLOBS", "")
    return Settings(catalog or found.catalog, blobs or found.blobs, found.limits)
