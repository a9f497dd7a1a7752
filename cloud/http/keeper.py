"""A thread of each worker that asks the gates of all rollouts, opens the bundles that devices may get, and lets go of
those that none gets any more."""

from __future__ import annotations

import logging
import threading

from cloud.http.services import Services
from device_runtime.errors import CodaError

_log = logging.getLogger("coda.releases")


class ReleaseKeeper:
    """Looks every `every_s` seconds. Use it in a `with`. Several workers may each have one: who comes second finds the
    gate asked, or the release stopped."""

    def __init__(self, services: Services, every_s: float = 5.0) -> None:
        self._services, self._every_s = services, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="release-keeper", daemon=True)

    def __enter__(self) -> ReleaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for a look that is going on: it may be writing a stop down."""
        self._stopping.set()
        self._thread.join(30)

    def look(self) -> None:
        """Raises: StoreError: the catalog's database does not answer."""
        self._services.releases.judge_all(self._every_s / 2)
        self._services.shelf.keep(self._services.releases.policy().bundles())

    def _keep(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.look()
            except CodaError as error:  # the next look may go better
                _log.error("gates not asked", extra={"facts": {"reason": str(error)}})
