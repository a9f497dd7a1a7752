"""Lowered graphs against autograd in float64; and graphs that were broken on purpose."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from device_runtime.bundle import BlobStore
from device_runtime.engines import open_engine
from device_runtime.engines.spec import BATCH_ROLES
from device_runtime.errors import EngineError, GraphInputError
from device_runtime.model import Model
from export import parity
from export.graphs import TRAIN_BATCH, classifier_plans, logits_of, recommender_plans
from export.lowering import ONNX_OPSET, to_executorch, to_onnx, trace
from export.models.classifier import SampleClassifier
from export.parity import TOLERANCE, Oracle, check, compare
from export.step import SGD, Adam, Step
from export.training import prepare


@pytest.fixture(scope="module")
def step(small_din):
    return Step(logits_of(small_din), tuple(n for n, _ in small_din.named_parameters()), SGD(), clip=5.0)


@pytest.fixture(scope="module")
def traced_step(small_din, step):
    return trace(recommender_plans(small_din, step)[2])


def test_every_graph_of_the_bundle_agrees_on_both_engines(bundle):
    _, manifest = bundle
    for name, entry in manifest.graphs.items():
        assert set(entry.files) == {"onnx", "executorch"}, name
        for file in entry.files.values():
            assert file.parity.worst <= TOLERANCE
            assert file.parity.steps == (4 if entry.spec.carry else 2)


@pytest.fixture(scope="module")
def shipped_steps(bundle, engines, small_din):
    """The bundle's step graph on both engines, its plan and its oracle."""
    folder, manifest = bundle
    model, step = prepare(small_din, manifest.training)
    plan = recommender_plans(model, step)[2]
    assert plan.spec == manifest.graphs["step"].spec
    graphs = [Model.open(manifest, engine, BlobStore(folder / "blobs")).graph("step") for engine in engines]
    return plan, Oracle(model, step), graphs


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(2, 900), seed=st.integers(0, 10_000))
def test_parity_holds_for_any_number_of_rows_and_samples_on_each_engine(shipped_steps, rows, seed):
    """What a device gives a graph: tables of any size, a batch of any size and full ones after it, other numbers, short
    and empty histories, soft labels."""
    plan, oracle, graphs = shipped_steps
    rng = np.random.default_rng(seed)
    examples = dict(plan.examples)
    for tensor in plan.spec.of("param", "attribute", "state"):
        if tensor.table:
            picked = torch.from_numpy(rng.integers(0, len(examples[tensor.name]), rows))
            examples[tensor.name] = examples[tensor.name][picked]
    for graph in graphs:
        worst, where = compare(replace(plan, examples=examples), oracle, graph, seed)
        assert worst <= TOLERANCE, where


def test_a_batch_above_the_bound_is_refused_by_name(shipped_steps):
    plan, _, graphs = shipped_steps
    assert plan.spec.bounds["batch"] == (1, TRAIN_BATCH)
    given = {n: t.numpy() for n, t in plan.examples.items()}
    for graph in graphs:
        batch = {t.name: np.stack([given[t.name]] * 2) for t in plan.spec.of(*BATCH_ROLES)}
        more = {n: np.concatenate([a, a[:, :1]], 1) for n, a in batch.items()}
        bound = graph.bind(given)
        for wrong, message in ((more, "from 1 to 32"), (batch | {"label": more["label"]}, "is 32 in another tensor")):
            with pytest.raises(GraphInputError, match=rf"expected shape .*\(batch {message}\), given \[2, 33"):
                bound.step(wrong | {n: given[n] for n in ("learning_rate", "table_rate")})


def test_adam_on_the_classifier_agrees_on_both_engines(tmp_path, engines):
    classifier = SampleClassifier(9)
    step = Step(logits_of(classifier), tuple(n for n, _ in classifier.named_parameters()), Adam(epsilon=1e-5))
    traced = trace(classifier_plans(classifier, step)[1])
    for engine, lower in zip(engines, (to_onnx, to_executorch), strict=True):
        path = tmp_path / engine.format
        path.write_bytes(lower(traced))
        found = check(traced.plan, Oracle(classifier, step), engine, path)
        assert 0 < found.worst <= TOLERANCE


def test_onnx_is_standard_small_and_says_nothing_of_the_machine(traced_step):
    data = to_onnx(traced_step)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", ONNX_OPSET)]
    assert not model.functions
    assert max((np.prod(t.dims) for t in model.graph.initializer), default=0) <= 64, "a table was baked in"
    assert b"/export/" not in data and b"site-packages" not in data
    assert "Where" not in {n.op_type for n in model.graph.node}


def _patched(data: bytes, patch) -> bytes:
    model = onnx.load_from_string(data)
    patch(model.graph)
    return model.SerializeToString()


def _no_update(graph) -> None:
    """One weight's update is replaced by the weight itself."""
    for node in graph.node:
        if node.output[0] == "new:deeper.weight":
            node.op_type = "Identity"
            del node.input[:]
            node.input.append("deeper.weight")
            del node.attribute[:]


def _slightly_wrong_rate(graph) -> None:
    """The learning rate is one per cent too large in one place."""
    factor = numpy_helper.from_array(np.float32(1.01), "one_per_cent_more")
    graph.initializer.append(factor)
    for node in graph.node:
        if node.output[0] == "new:hidden.weight":
            moved = node.input[1]
            for at, other in enumerate(graph.node):
                if moved in other.output:
                    extra = onnx.helper.make_node("Mul", [moved, "one_per_cent_more"], ["moved_more"])
                    graph.node.insert(at + 1, extra)
                    break
            node.input[1] = "moved_more"
            return


@pytest.mark.parametrize(("patch", "where"), [(_no_update, "deeper.weight"), (_slightly_wrong_rate, "hidden.weight")])
def test_a_broken_graph_is_caught_and_named(tmp_path, small_din, step, traced_step, patch, where):
    path = tmp_path / "broken.onnx"
    path.write_bytes(_patched(to_onnx(traced_step), patch))
    with pytest.raises(EngineError, match=rf"'step' on onnx differs .* 'new:{where}'.*not written"):
        check(traced_step.plan, Oracle(small_din, step), open_engine("onnx"), path)


@pytest.mark.parametrize(
    ("differences", "refused"),
    [([1e-6], False), ([5e-3, 1e-6, 2e-6], False), ([5e-3, 4e-3, 1e-6], True), ([np.inf, np.inf, np.inf], True)],
)
def test_one_unlucky_draw_of_inputs_is_not_held_against_a_graph(
    tmp_path, monkeypatch, small_din, step, traced_step, differences, refused
):
    """A rectifier whose input is 0 but for rounding may be open in one precision and shut in the other."""
    (tmp_path / "step.onnx").write_bytes(to_onnx(traced_step))
    drawn = iter([(worst, "new:ask.bias") for worst in differences])
    monkeypatch.setattr(parity, "compare", lambda *_: next(drawn))
    given = traced_step.plan, Oracle(small_din, step), open_engine("onnx"), tmp_path / "step.onnx"
    if refused:
        with pytest.raises(EngineError, match=r"'new:ask\.bias'.*The bundle was not written"):
            check(*given)
    else:
        assert check(*given).worst == sorted(differences)[len(differences) // 2]
    assert next(drawn, None) is None, "a graph that agrees is not looked at again"


def test_a_model_that_cannot_be_traced_is_named(small_din, step):
    plan = recommender_plans(small_din, step)[1]

    def looks_at_values(inputs):
        if inputs["item"].sum() > 0:
            raise ValueError("data-dependent")
        return plan.function(inputs)

    with pytest.raises(EngineError, match="graph 'score' cannot be traced"):
        trace(replace(plan, function=looks_at_values))
