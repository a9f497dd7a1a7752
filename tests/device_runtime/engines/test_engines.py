"""What every engine promises, over the same tiny graphs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file

from device_runtime.engines import ENGINES, Engine, open_engine
from device_runtime.errors import EngineError, GraphInputError, InputError
from device_runtime.trainer import advance
from tests.device_runtime.engines.tiny import GRAPHS, MOST_ROWS, SCATTER, STEP, Load, Tiny, sample, step, tensors


def test_steps_are_those_of_autograd(load: Load) -> None:
    graph, given = load("step"), sample(STEP)
    expected = tensors(STEP, given)
    for _ in range(6):
        results = graph(given)
        wanted = step(*expected)
        for spec, want in zip(STEP.outputs, wanted, strict=True):
            assert results[spec.name].dtype == np.dtype(spec.dtype)
            np.testing.assert_allclose(results[spec.name], want.numpy(), rtol=0, atol=1e-5, err_msg=spec.name)
        given |= {taken: results[name] for name, taken in STEP.carry.items()}
        expected[:6] = wanted[:6]


@pytest.mark.parametrize("rows", [2, 7, MOST_ROWS])
def test_a_table_may_have_any_number_of_rows_within_bounds(load: Load, rows: int) -> None:
    given = sample(STEP, rows)
    result = load("step")(given)["new:item.weight"]
    np.testing.assert_allclose(result, step(*tensors(STEP, given))[0].numpy(), atol=1e-5)


def test_one_graph_serves_tables_that_grow_and_shrink(load: Load) -> None:
    graph = load("step")
    for rows in (5, 60, 3):
        given = sample(STEP, rows)
        np.testing.assert_allclose(graph(given)["loss"], step(*tensors(STEP, given))[-1].numpy(), atol=1e-5)


def test_booleans_and_integers_pass(load: Load) -> None:
    given = sample(GRAPHS["types"][1])
    results = load("types")(given)
    assert {n: a.dtype.name for n, a in results.items()} == {"same": "float32", "other": "bool", "doubled": "int32"}
    np.testing.assert_array_equal(results["other"], ~given["mask"])
    np.testing.assert_array_equal(results["doubled"], 2 * given["small"])


def test_inputs_are_neither_written_to_nor_handed_back(load: Load) -> None:
    graph, given = load("types"), sample(GRAPHS["types"][1])
    before = {name: array.copy() for name, array in given.items()}
    for array in given.values():
        array.flags.writeable = False
    result = graph(given)["same"]
    assert not np.shares_memory(result, given["rows"])
    for name, array in before.items():
        np.testing.assert_array_equal(given[name], array)


def test_outputs_belong_to_the_caller(load: Load) -> None:
    graph = load("score")
    first = graph(sample(graph.spec, seed=1))["logit"]
    kept = first.copy()
    graph(sample(graph.spec, seed=2))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


def test_layout_in_memory_does_not_matter(load: Load) -> None:
    graph, given = load("score"), sample(GRAPHS["score"][1])
    odd = {name: np.repeat(a, 2, 0)[::2] if a.ndim == 1 else np.array(a, order="F") for name, a in given.items()}
    assert not odd["history"].flags.c_contiguous
    np.testing.assert_array_equal(graph(odd)["logit"], graph(given)["logit"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": np.zeros((8, 2))}, "'numbers': expected float32, given float64"),
        ({"history": np.zeros((8, 3), np.int32)}, "'history': expected int64, given int32"),
        (
            {"numbers": np.zeros((7, 2), np.float32)},
            "'numbers': expected shape ['batch', 2] (batch is 8 in another tensor), given [7, 2]",
        ),
        ({"bias": np.zeros(1, np.float32)}, "'bias': expected shape [], given [1]"),
        (
            {"item.weight": np.zeros((65, 4), np.float32)},
            "'item.weight': expected shape ['rows', 4] (rows from 2 to 64), given [65, 4]",
        ),
        ({"bias": None}, "missing tensors: bias"),
        ({"more": np.zeros(1)}, "tensors that the graph does not take: more"),
        ({"history": np.full((8, 3), 10)}, "'history': expected rows of 'item' from 0 to 9, given 10"),
        ({"history": np.full((8, 3), -1)}, "'history': expected rows of 'item' from 0 to 9, given -1"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(load: Load, change: dict[str, np.ndarray | None], message: str) -> None:
    graph = load("score")
    given = {n: a for n, a in (sample(graph.spec) | change).items() if a is not None}
    with pytest.raises(GraphInputError) as refused:
        graph(given)
    assert message in str(refused.value)


def test_two_tensors_must_agree_on_rows(load: Load) -> None:
    given = sample(STEP) | {"momentum:item.weight": np.zeros((9, 4), np.float32)}
    with pytest.raises(GraphInputError, match="rows is 10 in another tensor"):
        load("step")(given)


def test_an_engine_survives_an_index_that_the_spec_could_not_check(load: Load) -> None:
    graph = load("gather")
    given = sample(graph.spec)
    wrong = given | {"history": np.full((8, 3), 1 << 40)}
    with pytest.raises(EngineError, match="failed while running"):
        graph(wrong)
    np.testing.assert_array_equal(graph(given)["picked"], given["table"][given["history"]])


@pytest.mark.parametrize("content", [b"", b"not a graph" * 99, None], ids=["empty", "garbage", "truncated"])
def test_a_file_that_is_no_graph_is_refused(engine: Engine, tiny: Tiny, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "graph"
    path.write_bytes(tiny.path(engine.format, "step").read_bytes()[:9000] if content is None else content)
    with pytest.raises(EngineError):
        engine.load(path, STEP)


def of_another_version(data: bytes, form: str) -> bytes:
    """The graph as a later exporter might mark it."""
    if form == "executorch":
        assert data[4:8].startswith(b"ET")
        return data[:4] + b"ET99" + data[8:]
    model = onnx.load_from_string(data)
    model.opset_import[0].version = 99
    return bytes(model.SerializeToString())


def test_a_graph_for_another_version_of_the_engine_is_refused(engine: Engine, tiny: Tiny, tmp_path: Path) -> None:
    """With what it is and what was expected, before anything runs."""
    path = tmp_path / "later"
    path.write_bytes(of_another_version(tiny.path(engine.format, "step").read_bytes(), engine.format))
    with pytest.raises(EngineError) as refused:
        engine.load(path, STEP)
    said = str(refused.value)
    assert engine.version in said
    expected = {
        "onnx": "Opset 99 .* till opset 2",
        "executorch": "'ET99' != expected 'ET",
        "reference": "opset 99, at most 2",
    }
    assert re.search(expected[engine.name], said), said


def test_a_missing_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="absent"):
        engine.load(tmp_path / "absent", STEP)


def test_a_graph_other_than_the_spec_says_is_refused(engine: Engine, tiny: Tiny) -> None:
    with pytest.raises(EngineError, match="manifest"):
        engine.load(tiny.path(engine.format, "score"), STEP)


def test_an_unknown_engine_and_no_threads_are_refused() -> None:
    with pytest.raises(InputError, match="onnx, executorch, reference"):
        open_engine("tflite")
    with pytest.raises(InputError, match="at least one thread"):
        open_engine("onnx", threads=0)


CHILD = """
import json, os, sys
from pathlib import Path
import msgspec
from safetensors.numpy import load_file
from device_runtime.engines import GraphSpec, open_engine

def tasks():
    return len(os.listdir("/proc/self/task"))

name, threads, graphs, spec, values = sys.argv[1:]
before = tasks()
engine = open_engine(name, int(threads))
graph = engine.load(Path(graphs + "." + engine.format), msgspec.json.decode(spec, type=GraphSpec))
for _ in range(3):
    loss = graph(load_file(values))["loss"]
print(json.dumps({
    "loss": float(loss),
    "threads": 1 + tasks() - before,
    "torch": sorted(m for m in sys.modules if m.split(".")[0] in ("torch", "executorch")),
    "libtorch": "libtorch" in Path("/proc/self/maps").read_text(),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ENGINES)
def test_a_device_process_is_frugal(tiny: Tiny, shim_cache: Path, tmp_path: Path, name: str, threads: int) -> None:
    """No torch, no more threads than asked for, and not one file in the user's home (telemetry, caches)."""
    home = tmp_path / "home"
    home.mkdir()
    given = sample(STEP)
    save_file(given, tmp_path / "values")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k != "ORT_DISABLE_TELEMETRY"}
    child = subprocess.run(
        [
            *(sys.executable, "-c", CHILD, name, str(threads), str(tiny.folder / "step")),
            *(msgspec.json.encode(STEP).decode(), str(tmp_path / "values")),
        ],
        env=kept | {"HOME": str(home), "CODA_CACHE": str(shim_cache), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout)
    assert seen["loss"] == pytest.approx(float(step(*tensors(STEP, given))[-1]), abs=1e-5)
    assert seen["threads"] <= threads
    assert (seen["torch"], seen["libtorch"]) == ([], False)
    assert list(home.rglob("*")) == []


def test_engines_agree_after_many_steps(tiny: Tiny, shim_cache: Path) -> None:
    ends = []
    for name in ENGINES:
        engine = open_engine(name, cache=shim_cache)
        graph = engine.load(tiny.path(engine.format, "step"), STEP)
        given = sample(STEP)
        values = {t.name: given[t.name] for t in STEP.of("param", "state")}
        batch = {t.name: given[t.name] for t in STEP.of("feature", "label", "weight")}
        for _ in range(50):
            values, loss = advance(graph, values, batch, {"learning_rate": 0.05})
        ends.append(np.append(values["item.weight"].ravel(), loss))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 10, 64])
def test_rows_are_added_to_those_that_ids_name(load: Load, rows: int) -> None:
    """Ids may name a row twice. ExecuTorch's shim has a kernel of its own for this, and passes the other form on."""
    given = sample(SCATTER, rows)
    given["ids"][:2] = rows - 1
    given["ids"][2:] = np.arange(len(given["ids"]) - 2) % (rows - 1)
    found = load("scatter")(given)
    expected = given["table"].copy()
    np.add.at(expected, given["ids"], given["numbers"])
    np.testing.assert_allclose(found["added"], expected, rtol=1e-6)
    if rows > len(given["ids"]):
        last = given["table"].copy()
        last[given["ids"][2:]] = given["numbers"][2:]
        np.testing.assert_array_equal(found["set"][:-1], last[:-1])


@pytest.mark.parametrize("engine", ["executorch"], indirect=True)
def test_a_row_that_does_not_exist_is_an_error_in_the_shims_kernel(load: Load) -> None:
    """The device checks ids before anything runs; here the spec says nothing of a table that they belong to."""
    given = sample(SCATTER)
    given["ids"][3] = 10
    with pytest.raises(EngineError, match="the program failed: InvalidArgument"):
        load("scatter")(given)
