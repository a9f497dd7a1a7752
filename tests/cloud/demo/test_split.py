"""Nothing that a device is tested on may have been seen by anything before."""

import numpy as np
import pytest

from cloud.datasets import example, read
from cloud.demo.split import HELD_OUT, MIN_EACH, MIN_HELD_OUT, MIN_LOCAL, arrivals, split
from device_runtime.errors import InputError


@pytest.fixture(scope="module")
def parts():
    return split(example(), 12, np.random.default_rng(0))


def test_the_cloud_knows_nobody_who_plays_a_device_and_nothing_after_the_cut(parts):
    seen = {parts.cloud.users[i] for i in np.unique(parts.cloud.events.contributor)}
    assert len(parts.devices) == 12 and not seen & {device.user for device in parts.devices}
    assert parts.cloud.events.timestamp.max() <= parts.cut


def test_what_is_tested_is_later_than_all_else(parts):
    for device in parts.devices:
        assert device.held_out.timestamp.min() > parts.cut
        assert device.held_out.timestamp.min() > device.local.timestamp.max()
        assert len(device.local) >= MIN_LOCAL and len(device.held_out) >= MIN_HELD_OUT
        assert len(device.held_out) <= HELD_OUT * (len(device.local) + len(device.held_out)) + 1
        liked = device.held_out.label >= 0.5
        assert min(liked.sum(), (~liked).sum()) >= MIN_EACH


def test_local_events_arrive_in_order_and_all_of_them(parts):
    for rounds in (1, 2, 5):
        portions = arrivals(parts.devices[0].local, rounds)
        assert len(portions) == rounds
        np.testing.assert_array_equal(np.concatenate([p.item for p in portions]), parts.devices[0].local.item)


def test_the_choice_depends_on_the_seed_alone(parts):
    again = split(example(), 12, np.random.default_rng(0))
    assert [d.user for d in again.devices] == [d.user for d in parts.devices]
    other = split(example(), 12, np.random.default_rng(1))
    assert [d.user for d in other.devices] != [d.user for d in parts.devices]


def test_a_table_without_such_users_is_refused(tmp_path):
    rows = "".join(f"u{n % 30},i{n},{1000 + n},{n % 2}\n" for n in range(200))
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp,label\n" + rows)
    with pytest.raises(InputError, match="no user can play a device: it takes 20 to"):
        split(read(tmp_path / "t.csv"), 3, np.random.default_rng(0))
