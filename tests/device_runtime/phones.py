"""A device in the test's own process."""

from __future__ import annotations

import msgspec

from device_runtime import personalize
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.ranker import rank
from device_runtime.round import RoundOptions, run_round
from device_runtime.transport import Transport, TransportLimits

IMPATIENT = TransportLimits(attempts=2, base_backoff_s=0.01, max_backoff_s=0.05, read_timeout_s=20)


class Phone:
    def __init__(self, folder, published, url):
        self.home = DeviceHome(folder / "phone")
        self.engine = open_engine("onnx")
        self.home.store.add_events(read_history(published.history).events)
        self.published = published
        self.move_to(url)

    def move_to(self, url):
        self.home.enrol(url, self.published.trust, ByteCounter())

    def round(self, pulse=None, **options):
        signer = self.home.signer()
        device = self.home.store.setting("device")
        with Transport(self.home.server, ByteCounter(), signer=signer, device=device, limits=IMPATIENT) as transport:
            return run_round(self.home, transport, self.engine, RoundOptions(**options), pulse=pulse)

    def ranking(self):
        model = self.home.model(self.engine)
        return rank(self.home, model, self.home.active_weights(model), None, 10)

    def states(self):
        return [row.state for row in self.home.store.rounds()]


def always(monkeypatch, activate):
    """Let the judge decide as the test needs it."""
    real = personalize.judge

    def judged(*given):
        return msgspec.structs.replace(real(*given), activate=activate)

    monkeypatch.setattr(personalize, "judge", judged)
