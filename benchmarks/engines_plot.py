"""The engines benchmark as a picture: bars of the ratio to PyTorch eager, a self-contained SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloud.report import svg

STYLE = """
svg{font:13px sans-serif;background:#fff}text{fill:#222}.small{fill:#666;font-size:11px}
.grid{stroke:#ccc}.one{stroke:#222}.bar{fill:#2a6f97}.base{fill:#999}
@media(prefers-color-scheme:dark){svg{background:#161616}text{fill:#eee}.small{fill:#aaa}.grid{stroke:#444}
.one{stroke:#eee}.bar{fill:#61a5c2}}
"""
_ROW, _LEFT, _RIGHT, _TOP = 22, 330, 800, 46


def plot(rows: Sequence[Mapping[str, object]]) -> str:
    """rows: as the benchmark writes them; those that were not run are left out."""
    run = [r for r in rows if isinstance(r.get("ratio_to_eager"), float)]
    ratios = [float(str(r["ratio_to_eager"])) for r in run]
    scale = svg.Scale([0.0, *ratios], _LEFT, _RIGHT, about=6)
    bottom = _TOP + _ROW * len(run)
    body = [f"<style>{STYLE}</style>", svg.text(10, 24, "Training step: how many times as fast as PyTorch eager")]
    body += scale.axis(_TOP - 8, bottom)
    for number, (row, ratio) in enumerate(zip(run, ratios, strict=True)):
        y = _TOP + _ROW * number
        history = f", history {row['history']}" if row["history"] else ""
        words = f"{row['model']}{history}, {row['threads']} thread(s): {row['engine']}"
        body.append(svg.text(_LEFT - 8, y + 12, words, "small", "end"))
        kind = "base" if row["engine"] == "pytorch-eager" else "bar"
        body.append(svg.rect(_LEFT, y, scale(ratio) - _LEFT, _ROW - 7, kind, f"{row['ms_per_step']:.3f} ms"))
        body.append(svg.text(scale(ratio) + 5, y + 12, f"{ratio:.1f}", "small"))
    body.append(svg.line(scale(1), _TOP - 8, scale(1), bottom, "one"))
    picture = svg.picture(_RIGHT + 60, bottom + 28, "Ratio to PyTorch eager", "Bars, one an engine", body)
    return str(picture).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
