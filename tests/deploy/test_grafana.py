"""The Grafana board draws what the server exports."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cloud.telemetry import FAMILIES, Metrics
from cloud.telemetry.families import GAUGES

BOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "coda-server.json"


def exported():
    """Every name that /metrics has, with the labels of each."""
    found = {}
    lines = Metrics(FAMILIES).text((family, {tuple("x" for _ in family.labels): 1.0}) for family in GAUGES.values())
    for line in lines.splitlines():
        if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line):
            found[match[1]] = set(re.findall(r'(\w+)="', match[2] or ""))
    return found


def test_every_metric_on_the_board_is_exported_with_its_labels():
    known, used = exported(), set()
    panels = json.loads(BOARD.read_text())["panels"]
    for panel in panels:
        for target in panel["targets"]:
            names = set(re.findall(r"coda_\w+", target["expr"]))
            assert names and names <= set(known), f"{panel['title']}: {names - set(known)}"
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            labels |= {name for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in group.split(", ")}
            assert labels <= set.union(*(known[name] for name in names)), panel["title"]
            used |= names
    families = {family.name for family in FAMILIES} | set(GAUGES)
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}, "each is drawn somewhere"


def test_panels_do_not_overlap():
    taken = set()
    for panel in json.loads(BOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
