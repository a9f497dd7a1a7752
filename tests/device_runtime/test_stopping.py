"""How many passes are enough."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.stopping import EarlyStop


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=12), st.integers(1, 4))
def test_a_stop_keeps_the_best_of_the_passes_that_it_saw(slopes, patience):
    labels = np.array([1, 0, 1, 0], np.float32)
    tilt = np.array([1, -1, 1, -1], np.float32)
    stop = EarlyStop(lambda values: values["slope"] * tilt + 7, labels, {"slope": np.float32(0)}, patience)
    made = [0.0]
    for tenths in slopes:
        made.append(tenths / 10)
        if stop({"slope": np.float32(tenths / 10)}):
            break
    best = int(np.argmax(made))  # the steeper, the better, and the first of equals
    assert stop.passes == best and stop.best["slope"] == np.float32(made[best])
    assert len(made) - 1 - best <= patience
