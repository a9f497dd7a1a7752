"""The page, the JSON and the table, over ordinary and over extreme results."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cloud.report import DemoReport, terminal_table, write
from cloud.report.model import Aucs, FilterFacts, RankedItem, summarize
from cloud.report.render import page
from tests.cloud.report import sample

_VOID = {"meta", "br"}


def _extremes() -> dict[str, DemoReport]:
    rng = np.random.default_rng(sample.SEED)
    odd = [
        sample.device("an-identifier-" * 6, rng),
        sample.device("one class", rng, "executorch", auc=Aucs()),
        sample.device("no candidates", rng, candidates=0, kept=0, filter=None, top=[]),
        sample.device("none kept", rng, kept=0),
        sample.device("no local", rng, auc=Aucs(0.5, None, 0.6)),
        sample.device("stopped", rng, count=1, auc=Aucs(), filter=None, top=[], error="http://127.0.0.1:9 is gone"),
        sample.device("dead", rng, rounds=[], bytes_by_message=[], auc=Aucs(), filter=None, top=[], error="refused"),
    ]
    return {
        "usual": sample.report(sample.fleet(12)),
        "one device, one round": sample.report(sample.fleet(1, rounds=1)),
        "fifty devices": sample.report(sample.fleet(50)),
        "odd devices": sample.report(odd, notes=["no ExecuTorch here"], quick=True),
        "only a failure": sample.report(odd[-1:]),
        "no device": sample.report([]),
    }


EXTREMES = _extremes()


@pytest.fixture(params=EXTREMES, ids=lambda name: name.replace(" ", "-"))
def report(request: pytest.FixtureRequest) -> DemoReport:
    return EXTREMES[request.param]


def _page(report: DemoReport) -> str:
    return page(report, summarize(report))


class _Checker(HTMLParser):
    """Fails on a tag that is closed without being open, and keeps the words that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def _read(text: str) -> _Checker:
    checker = _Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    return checker


def test_page_is_balanced_and_fetches_nothing(report: DemoReport) -> None:
    text = _page(report)
    assert text.lstrip().startswith("<!doctype html>")
    assert not _read(text).seen & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"(src|href)\s*=|url\(|@import", text)


def test_every_picture_is_described(report: DemoReport) -> None:
    pictures = re.findall(r"<svg [^>]*>.{0,40}", _page(report), re.DOTALL)
    assert pictures
    for picture in pictures:
        assert 'aria-hidden="true"' in picture or ('role="img"' in picture and "<title>" in picture)


def test_no_number_is_broken(report: DemoReport) -> None:
    words = _read(_page(report)).words
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", words)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', _page(report))


def test_written_files_say_the_same(report: DemoReport, tmp_path: Path) -> None:
    write(report, tmp_path / "new")
    content = json.loads((tmp_path / "new" / "report.json").read_text())
    assert {"command", "version", "machine", "started", "devices", "summary"} <= set(content)
    for device in content["devices"]:
        assert {"id", "engine", "local", "candidates", "kept", "activated", "auc", "overhead"} <= set(device)
        assert set(device["auc"]) == {"cloud", "local", "coda"}
        assert {"cpu_s", "peak_mib", "bytes_down", "bytes_up", "bytes_stored"} <= set(device["overhead"])
    assert (tmp_path / "new" / "report.html").read_text() == _page(report)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.json"]


def test_claims_are_on_the_page_in_words() -> None:
    words = _read(_page(sample.report(sample.fleet(3)))).words
    assert "No difference can be claimed from 3 devices" in words
    many = sample.report(sample.fleet(50))
    assert summarize(many).coda_minus_cloud.claim in _read(_page(many)).words


def test_failures_are_loud() -> None:
    words = _read(_page(EXTREMES["odd devices"])).words
    assert "no ExecuTorch here" in words
    assert "Device one class is in no comparison" in words
    assert "failed: refused" in words


def test_a_failure_that_the_demo_noted_is_not_repeated(rng: np.random.Generator) -> None:
    device = sample.device("a", rng, error="the disk is full", auc=Aucs())
    noted = sample.report([device], notes=["device a (onnx): the disk is full"])
    assert "in no comparison" not in _page(noted)


def test_hostile_text_stays_text(rng: np.random.Generator) -> None:
    evil = "\"><script>alert(1)</script><b a='&"
    device = sample.device(evil, rng, top=[RankedItem(1, evil, evil, 0.5, 2)])
    failed = sample.device(evil + "2", rng, engine=evil, error=evil)
    hostile = sample.report([device, failed, *sample.fleet(2)], notes=[evil], command=evil, machine={evil: evil})
    checker = _read(_page(hostile))
    assert "script" not in checker.seen
    assert evil in checker.words


def test_pooled_shares_weigh_devices_by_their_candidates(rng: np.random.Generator) -> None:
    few = FilterFacts([0.0, 0.5, 1.0], [0, 1], [1, 0], kept_positive_share=0.0)
    many = FilterFacts([0.0, 0.5, 1.0], [0, 3], [1, 0], kept_positive_share=1.0)
    devices = [sample.device("few", rng, filter=few), sample.device("many", rng, filter=many)]
    assert "Liked among the kept: 75 %" in _read(_page(sample.report(devices))).words


@pytest.mark.parametrize("width", [80, 132])
def test_terminal_table_cuts_nothing_off(width: int) -> None:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal_table(EXTREMES["odd devices"]))
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    text = " ".join(lines)
    for words in ("executorch", "own", "+0.1000", "failed", "400", "CoDA −"):
        assert words in text
    assert "dead failed: refused" in text


def test_terminal_table_of_nothing() -> None:
    assert terminal_table(EXTREMES["no device"]).row_count == 0
    assert terminal_table(EXTREMES["only a failure"]).row_count == 1
