"""A thread of each worker that asks the gates of all rollouts, opens the bundles that devices may get, lets go of those
that none gets any more, and of what is older than the operator wants kept."""

from __future__ import annotations

import logging
import threading

from cloud.http.services import Services
from device_runtime.errors import CodaError

_DAY_S = 86_400
_FORGET_EVERY_S = 3600.0
_log = logging.getLogger("coda.releases")


class ReleaseKeeper:
    """Looks every `every_s` seconds. Use it in a `with`. Several workers may each have one: who comes second finds the
    gate asked, or the release stopped."""

    def __init__(self, services: Services, every_s: float = 5.0) -> None:
        self._services, self._every_s = services, every_s
        self._forgot_at = float("-inf")
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
        """Raises: StoreError: the catalog's database does not answer, or the pool cannot be written."""
        self._services.releases.judge_all(self._every_s / 2)
        self._services.shelf.keep(self._services.releases.policy().bundles())
        self._forget(self._services.clock())

    def _forget(self, now: float) -> None:
        """Once an hour, by `report_days` and `sample_days`."""
        if now - self._forgot_at < _FORGET_EVERY_S:
            return
        limits, services = self._services.limits, self._services
        reports = services.catalog.forget_reports(now - limits.report_days * _DAY_S) if limits.report_days else 0
        samples = services.pool.retain(int(now - limits.sample_days * _DAY_S)) if limits.sample_days else 0
        self._forgot_at = now
        if reports or samples:
            _log.info("old things forgotten", extra={"facts": {"reports": reports, "samples": samples}})

    def _keep(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.look()
            except CodaError as error:  # the next look may go better
                _log.error("rollouts not looked after", extra={"facts": {"reason": str(error)}})
