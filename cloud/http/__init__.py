"""The server's HTTP layer: thin, everything it uses is passed in."""

from cloud.http.app import create_app
from cloud.http.limits import ServerLimits
from cloud.http.services import Services

__all__ = ["ServerLimits", "Services", "create_app"]
