"""The server's HTTP interface: a thin layer over the catalog, the pool and matching."""

from cloud.http.app import create_app
from cloud.http.services import ServerLimits, Services

__all__ = ["ServerLimits", "Services", "create_app"]
