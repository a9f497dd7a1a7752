"""`coda evaluate` from its words to its JSON, its page and its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cloud.evaluation import command, making, markdown
from cloud.evaluation.methods import METHODS
from cloud.evaluation.protocols import Split
from cloud.report import words
from device_runtime.cli import main
from device_runtime.errors import InputError
from export.checkpoint import TrainSettings

from .conftest import Finished

pytestmark = pytest.mark.timeout(900)  # the first test waits for an export, which a busy machine draws out
METHOD_FIELDS = {"name", "mean_user_auc", "gauc", "log_loss", "calibration", "vs_cloud", "vs_local", "better", "same"}
METHOD_FIELDS |= {"worse", "raw", "p5", "cost", "strata"}
COST_FIELDS = {"cpu_s", "peak_mib", "bytes_down", "bytes_up", "candidates", "kept"}


def test_the_json_has_what_others_script_against(finished: Finished) -> None:
    result = finished.result
    for field in ("command", "version", "machine", "started", "dataset", "protocol", "users", "seeds", "model"):
        assert result[field], field
    assert set(result["versions"]) >= {"coda-loop", "numpy", "onnxruntime", "torch"}
    assert (result["users"], result["seeds"], result["protocol"]) == (6, 1, "synthetic")
    assert [m["name"] for m in result["methods"]] == list(METHODS)
    assert result["settings"]["half_life"] >= 0 and result["settings"]["shrinkage"] > 0, "what training found"
    for method in result["methods"]:
        assert set(method) >= METHOD_FIELDS and set(method["cost"]) == COST_FIELDS
        assert method["better"] + method["same"] + method["worse"] == pytest.approx(1)
        assert method["vs_cloud"]["ci95"][0] <= method["vs_cloud"]["mean"] <= method["vs_cloud"]["ci95"][1]
        assert sum(s["users"] for s in method["strata"]) == 6


def test_costs_say_what_each_method_does(finished: Finished) -> None:
    cost = {m["name"]: m["cost"] for m in finished.result["methods"]}
    assert not any(cost["cloud"].values())
    assert cost["local"]["cpu_s"] > 0 and not cost["local"]["bytes_down"] and not cost["local"]["kept"]
    assert cost["coda"]["bytes_up"] > 50 and cost["coda"]["bytes_down"] > cost["coda"]["candidates"]
    assert cost["coda"]["candidates"] >= cost["coda"]["kept"] > 0
    assert cost["coda"]["cpu_s"] > cost["local-judged"]["cpu_s"]
    assert cost["local+random"]["bytes_up"] == 0 < cost["local+random"]["bytes_down"]
    assert cost["local+matched"]["kept"] == cost["local+matched"]["candidates"]


def test_the_bound_is_at_least_as_good_as_what_it_chooses_from(finished: Finished) -> None:
    auc = {m["name"]: m["mean_user_auc"] for m in finished.result["methods"]}
    assert auc["oracle"] >= max(auc["cloud"], auc["local"], auc["coda"], auc["coda-no-judge"])
    assert [m["name"] for m in finished.result["methods"] if m["reference"]] == ["oracle"]


def test_the_judges_errors_are_counted(finished: Finished) -> None:
    judge = finished.result["judge"]
    assert judge["updates"] == 6 and 0 <= judge["kept"] <= 1 and judge["harmful"] + judge["helpful"] <= 1


def test_the_page_is_whole_and_fetches_nothing(finished: Finished) -> None:
    page = (finished.report / "report.html").read_text()
    assert json.loads((finished.report / "report.json").read_text()) == finished.result
    assert all(f">{name}" in page for name in METHODS)
    assert page.count("<svg") >= 10 and "upper bound" in page
    [expected] = [m["expected"] for m in finished.result["methods"] if m["name"] == "coda"]
    told = f"{words.percent(expected['worse'])} of all users are worse off" if expected else "cannot be told"
    assert told in page, "what the share of users harmed is behind noise"
    assert "<script" not in page and "https://" not in page and "http://" not in page.replace("http://www.w3.org", "")


def without_costs(result: dict[str, Any]) -> Any:
    for method in result["methods"]:
        del method["cost"]
    return {"methods": result["methods"], "examined": result["examined"], "filter": result["filter"]}


def test_the_same_seed_gives_the_same_numbers_whatever_else_is_asked_for(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    assert main([*finished.words, "--methods", "local,coda,oracle", "--json", str(out)]) == 0
    again = json.loads(out.read_text())
    names = [m["name"] for m in again["methods"]]
    assert names == ["cloud", "local", "coda", "oracle"]
    whole = [m for m in finished.result["methods"] if m["name"] in names]
    for one, other in zip(again["methods"], whole, strict=True):
        assert {k: v for k, v in one.items() if k != "cost"} == {k: v for k, v in other.items() if k != "cost"}


def test_a_run_that_is_killed_goes_on_where_it_was(finished: Finished, tmp_path: Path) -> None:
    words = ["evaluate", "--protocol", "synthetic", "--heterogeneity", "1", "--quick", "--users", "16", "--jobs", "1"]
    words += ["--work", str(finished.work), "--methods", "local-judged", "--json"]
    before = set((finished.work / "results").glob("*/*.json"))

    def fresh() -> list[Path]:
        return sorted(set((finished.work / "results").glob("*/*.json")) - before)

    command = [sys.executable, "-m", "device_runtime", *words, str(tmp_path / "killed.json")]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not fresh():
            assert killed.poll() is None, "it ended before its first chunk was done"
            time.sleep(0.01)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert not (tmp_path / "killed.json").exists()
    done = {path: path.stat().st_mtime_ns for path in fresh()}
    assert main([*words, str(tmp_path / "resumed.json")]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(fresh()) == 4  # 16 users are four chunks
    for path in fresh():
        path.unlink()
    assert main([*words, str(tmp_path / "whole.json")]) == 0
    resumed, whole = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("resumed", "whole"))
    assert without_costs(resumed) == without_costs(whole)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "coda,magic"], "no method is called 'magic'"),
        (["--users", "0"], "at least 1"),
        (["--jobs", "0"], "--jobs"),
        (["--training-seed", "-1"], "--training-seed is at least 0"),
        (["--items", "x.csv"], "--items goes with --interactions"),
        (["--heterogeneity", "1"], "belong to --protocol synthetic"),
        (["--protocol", "synthetic", "--heterogeneity", "2"], "goes from 0 to 1"),
        (["--protocol", "synthetic", "--interactions", "x.csv"], "makes its own table"),
        (["--interactions", "absent.csv"], "there is no absent.csv"),
        (["--settings", "absent.json"], "cannot read the settings"),
        (["--model", "Nothing"], "no model is called 'Nothing'"),
    ],
)
def test_bad_words_are_refused_with_a_sentence(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--quick", *words, "--json", str(tmp_path / "out.json")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("text", ['{"candidate": 5}', "[]", "{"])
def test_settings_that_are_none_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text(text)
    words = ["evaluate", "--quick", "--settings", str(tmp_path / "settings.json"), "--json", str(tmp_path / "out.json")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "holds no round settings" in told and "candidates" in told


def test_settings_change_the_round(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"candidates": 40}')
    words = [*finished.words, "--methods", "coda", "--settings", str(tmp_path / "settings.json")]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["settings"]["candidates"] == 40
    assert result["methods"][-1]["cost"]["candidates"] == 40


def test_another_training_seed_makes_another_cloud_model(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def stopped(split: Split, work: Path, settings: TrainSettings, show: making.Show) -> making.Place:
        made.append(making._names(split, work, settings)[0])
        raise InputError(f"a cloud of seed {settings.seed}")

    monkeypatch.setattr(command, "prepare", stopped)
    for seed in ("0", "0", "3"):
        assert main([*finished.words, "--training-seed", seed, "--json", str(tmp_path / "out.json")]) == 2
    assert made[0] == made[1] != made[2]


def test_a_result_becomes_a_table_for_documents(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert markdown.main([str(finished.report / "report.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "`synthetic`, DIN**: 6 users, 1 seeds" in lines[0].replace("synthetic-1, ", "")
    rows = [line.removeprefix("| ").split(" | ") for line in lines if line.startswith("| ")]
    heads = [
        number for number, row in enumerate(rows) if row[0] in ("method", "CoDA minus, by pairs over the same users")
    ]
    assert heads == [0, len(METHODS) + 1]
    assert [row[0].removesuffix(" (bound)") for row in rows[1 : heads[1]]] == list(METHODS)
    parts = dict(rows[heads[1] + 1 :])
    assert not {"cloud", "local", "coda", "oracle"} & set(parts) and len(parts) == len(METHODS) - 4
    aucs = [user["aucs"] for user in json.loads((finished.report / "report.json").read_bytes())["examined"]]
    for name, found in parts.items():
        mean = sum(one["coda"] - one[name] for one in aucs) / len(aucs)
        assert found.split()[0].strip("|") == words.signed(mean)
    assert markdown.main([]) == 2 and "cloud.evaluation.markdown" in capsys.readouterr().err


def test_a_file_that_is_no_result_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert markdown.main([str(other)]) == 1 and "is no result of this version" in capsys.readouterr().err
    assert markdown.main([str(tmp_path / "none.json")]) == 1 and "cannot read" in capsys.readouterr().err
