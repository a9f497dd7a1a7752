"""The page in a browser: it renders, light and dark, wide and narrow; and its colours can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloud.report.model import summarize
from cloud.report.render import page
from tests.cloud.report import sample

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium to look at the page with: apt-get install chromium")
LONG = "a-very-long-identifier-of-one-user-" * 3


@pytest.fixture(scope="module")
def text() -> str:
    devices = [*sample.fleet(12), sample.device(LONG, np.random.default_rng(1))]
    report = sample.report(devices, notes=["something was left out"])
    return page(report, summarize(report))


_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def _chromium(folder: Path, *words: str) -> str:
    assert _CHROMIUM
    command = [_CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scrolled(page: str, width: int, folder: Path) -> tuple[int, int]:
    """How wide a page may be, and how wide it is. In a frame: a window of Chromium's cannot be as narrow as a phone."""
    script = (
        "const page = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = page.clientWidth + ' ' + page.scrollWidth"
    )
    frame = f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{escape(page)}"></iframe>'
    (folder / "frame.html").write_text(f'<!doctype html><title>-</title><body onload="{script}">{frame}')
    found = _chromium(folder, "--window-size=1400,900", "--dump-dom", (folder / "frame.html").as_uri())
    title = re.search(r"<title>(\d+) (\d+)</title>", found)
    assert title, found[:300]
    return int(title[1]), int(title[2])


@browser
@pytest.mark.parametrize(("scheme", "setting"), [("light", 1), ("dark", 0)])
def test_page_renders(text: str, tmp_path: Path, scheme: str, setting: int) -> None:
    (tmp_path / "page.html").write_text(text)
    shot = tmp_path / "shot.png"
    _chromium(
        tmp_path,
        f"--blink-settings=preferredColorScheme={setting}",
        f"--screenshot={shot}",
        "--window-size=1280,2400",
        (tmp_path / "page.html").as_uri(),
    )
    with Image.open(shot) as opened:
        image = opened.convert("RGB")
    assert image.size == (1280, 2400)
    colours = image.getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 200
    paper = max(colours)[1]
    assert isinstance(paper, tuple)
    assert (sum(paper) > 600) == (scheme == "light")


@browser
@pytest.mark.parametrize("width", [320, 390, 700, 900, 1280])
def test_page_does_not_scroll_sideways(text: str, tmp_path: Path, width: int) -> None:
    assert scrolled(text, width, tmp_path) == (width, width)


def test_words_stand_out_from_what_is_behind_them() -> None:
    """WCAG's 4.5 : 1 for text, in both schemes."""
    style = (files("cloud") / "report" / "report.css").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): #(\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 2
    for colours in schemes:
        for name in ("ink", "soft", "worse", "better"):
            assert _contrast(colours[name], colours["paper"]) >= (3 if name == "better" else 4.5), name
        assert _contrast(colours["soft"], colours["card"]) >= 4.5
        assert _contrast(colours["ink"], colours["warn"]) >= 4.5
        for name in ("cloud", "local", "coda", "same", *(f"p{i}" for i in (0, 2, 4, 5))):
            assert _contrast(colours[name], colours["paper"]) >= 3, name


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
