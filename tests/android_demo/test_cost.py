"""What the Java part of a round costs, in processes that have run nothing before: a phone runs one round in each.

CI measures in the world of all tests. For 100 local samples and 500 candidates, which takes an export of their own:

    CODA_COST=full pytest -s tests/android_demo/test_cost.py
"""

from __future__ import annotations

import dataclasses
import os
import statistics

import pytest

from tests.conftest import publish_tastes, published_in

REPEATS = 3
CORES_MOST_S = 0.2
"""CPU seconds that the round's own thread may take, by the issue; measured here beside other tests, so twice that."""


FULL = os.environ.get("CODA_COST") == "full"


@pytest.fixture
def published(published, tmp_path):
    if not FULL:
        return published
    world = tmp_path / "world"
    world.mkdir()
    publish_tastes(world, items=2000, each=160, local=100, candidates=500)
    return published_in(world)


def test_the_java_part_of_a_first_round_and_of_a_daily_one(device, serving, published, tmp_path, record_property):
    spent = {"first": [], "daily": []}
    with serving() as (url, _):
        for repeat in range(REPEATS):
            phone = dataclasses.replace(device, home=tmp_path / f"phone-{repeat}")
            phone.told(server=url, history=published.history, rounds=0)
            for costs in spent.values():  # each in a JVM of its own: the first pulls the bundle, the other has it
                report, _ = phone.run()
                assert (report["local"], report["candidates"]) == ((100, 500) if FULL else (60, 60))
                costs.append((report["thread_cpu_s"], report["process_cpu_s"]))
    for kind, costs in spent.items():
        thread, process = (statistics.median(column) for column in zip(*costs, strict=True))
        print(f"{kind} round: {thread:.3f} CPU s of its thread, {process:.3f} of the process with its compiler")
        record_property(f"{kind}_thread_cpu_s", thread)
        assert thread < process and thread < 2 * CORES_MOST_S
