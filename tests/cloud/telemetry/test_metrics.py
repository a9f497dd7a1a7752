"""Counting in several processes, and what is told of it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from cloud.telemetry import FAMILIES, Family, Metrics

COLOURS = Family("balls_total", "counter", "Balls.", {"colour": ("red", "blue"), "size": ("s", "l")})
WEIGHTS = Family("weight", "histogram", "Weights.", {}, (1.0, 2.0, 4.0))


def test_series_are_told_in_prometheus_text():
    metrics = Metrics([COLOURS, WEIGHTS])
    metrics.add("balls_total", "blue", "s", by=3)
    for value in (0.5, 1.0, 3.0, 9.0):
        metrics.observe("weight", value=value)
    gauge = Family("up", "gauge", "Whether it is up.")
    assert metrics.text([(gauge, {(): 1.0})]).splitlines() == [
        "# HELP balls_total Balls.", "# TYPE balls_total counter",
        'balls_total{colour="red",size="s"} 0', 'balls_total{colour="red",size="l"} 0',
        'balls_total{colour="blue",size="s"} 3', 'balls_total{colour="blue",size="l"} 0',
        "# HELP weight Weights.", "# TYPE weight histogram",
        'weight_bucket{le="1"} 2', 'weight_bucket{le="2"} 2', 'weight_bucket{le="4"} 3', 'weight_bucket{le="+Inf"} 4',
        "weight_sum 13.5", "weight_count 4", "# HELP up Whether it is up.", "# TYPE up gauge", "up 1",
    ]  # fmt: skip
    assert metrics.total("weight") == 4 and metrics.mean("weight") == 13.5 / 4
    assert metrics.distribution("weight") == (("1", 2.0), ("2", 0.0), ("4", 1.0), ("", 1.0))


def test_a_series_that_was_not_declared_cannot_appear():
    with pytest.raises(KeyError):
        Metrics([COLOURS]).add("balls_total", "green", "s")


def test_quantiles_lie_within_their_bucket(rng):
    metrics = Metrics([Family("x", "histogram", "", {}, tuple(np.linspace(0.1, 1, 10)))])
    assert metrics.quantile("x", q=0.5) is None and metrics.mean("x") is None
    values = rng.random(2000)
    for value in values:
        metrics.observe("x", value=value)
    for q in (0.1, 0.5, 0.9, 0.99):
        assert abs(metrics.quantile("x", q=q) - np.quantile(values, q)) < 0.1
    metrics.observe("x", value=50.0)
    assert metrics.quantile("x", q=1.0) == 1.0, "beyond all bounds: at least the last"


def count_in_threads(metrics):
    def count():
        for _ in range(500):
            metrics.add("balls_total", "red", "s")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_processes_and_threads_lose_no_count():
    metrics = Metrics([COLOURS], workers=3)
    children = []
    for worker in range(3):
        pid = os.fork()
        if pid == 0:
            count_in_threads(metrics.of(worker))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert metrics.total("balls_total", "red", "s") == 6000


def test_a_worker_that_is_started_anew_goes_on_counting():
    metrics = Metrics(FAMILIES, workers=2)
    for _ in range(2):
        metrics.of(1).add("coda_match_short_total")
    assert metrics.of(0).total("coda_match_short_total") == 2
