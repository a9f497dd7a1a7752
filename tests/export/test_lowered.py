"""Models and ways of training, lowered: each model on ONNX Runtime, several steps in a call; some on ExecuTorch."""

import numpy as np
import onnx
import pytest
import torch

from device_runtime.bundle import Training, pack_file
from device_runtime.engines import open_engine
from device_runtime.errors import EngineError
from device_runtime.trainer import advance, initial_state, train
from export.audit import audited
from export.graphs import classifier_plans, logits_of, recommender_plans
from export.lowering import to_executorch, to_onnx, trace
from export.models import MODELS, history
from export.models.classifier import SampleClassifier
from export.parity import TOLERANCE, Oracle, check
from export.scan import scan_steps
from export.step import Adam, Step
from export.training import EPSILON, prepare
from tests.export.test_training import new

MOST_BYTES = {"onnx": 12_000, "executorch": 15_000}
"""Of a step graph here, compressed."""

ON_ONNX = {
    "LR": Training("adagrad", weight_decay=0.05),
    "WideDeep": Training("sgd", 0.9, 0.05),
    "DeepFM": Training("adamw", weight_decay=0.05),
    "PNN": Training("adam", weight_decay=0.05, train="embeddings"),
    "DIN": Training("adamw", train="lowrank:2"),
    "SASRec": Training("sgd", train="patch"),
    "GRU": Training("sgd", clip=0.01, train="head"),
}
ON_EXECUTORCH = {
    "LR": Training("adamw", weight_decay=0.05),
    "GRU": Training("sgd", 0.9, 0.05, train="embeddings"),
}


def test_every_model_is_covered():
    assert set(ON_ONNX) == set(MODELS)


def lowered(name, training, lower, form):
    model, step = prepare(new(name), training)
    traced = audited(recommender_plans(model, step)[2], [form])
    return traced.plan, Oracle(model, step), lower(traced)


@pytest.mark.parametrize("name", ON_ONNX)
def test_on_onnx_runtime(name, tmp_path):
    plan, oracle, data = lowered(name, ON_ONNX[name], scan_steps, "onnx")
    path = tmp_path / "step.onnx"
    path.write_bytes(data)
    parity = check(plan, oracle, open_engine("onnx"), path, most_steps=8)
    assert 0 < parity.worst <= TOLERANCE
    assert pack_file(data)[0].size < MOST_BYTES["onnx"]


@pytest.mark.parametrize("name", ON_EXECUTORCH)
def test_on_executorch(name, tmp_path):
    plan, oracle, data = lowered(name, ON_EXECUTORCH[name], to_executorch, "executorch")
    path = tmp_path / "step.pte"
    path.write_bytes(data)
    parity = check(plan, oracle, open_engine("executorch"), path)
    assert 0 < parity.worst <= TOLERANCE
    assert pack_file(data)[0].size < MOST_BYTES["executorch"]


def test_a_model_of_one_size_of_batch_is_refused_by_name(monkeypatch):
    model, step = prepare(new("LR"), Training("sgd"))
    forward = type(model).forward

    def fixed(self, item, history):
        return forward(self, item, history).reshape(len(item))

    monkeypatch.setattr(type(model), "forward", fixed)
    with pytest.raises(
        EngineError, match="graph 'step' cannot be traced: the model works for batches of one size only"
    ):
        trace(recommender_plans(model, step)[2])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The classifier's step: (spec of one step, its file, the file of several)."""
    torch.manual_seed(0)
    module = SampleClassifier(5)
    step = Step(logits_of(module), tuple(n for n, _ in module.named_parameters()), Adam(epsilon=EPSILON))
    traced = audited(classifier_plans(module, step)[1], ["onnx", "executorch"])
    folder = tmp_path_factory.mktemp("classifier")
    for name in ("one", "several"):
        (folder / f"{name}.executorch").write_bytes(to_executorch(traced))
    (folder / "one.onnx").write_bytes(to_onnx(traced))
    (folder / "several.onnx").write_bytes(scan_steps(traced))
    values = {t.name: traced.plan.examples[t.name].numpy() for t in traced.plan.spec.of("param")}
    return traced.plan.spec, folder, values


@pytest.mark.parametrize("name", ["onnx", "executorch", "reference"])
def test_several_steps_in_a_call_are_the_same_steps(classifier, rng, name):
    spec, folder, values = classifier
    engine = open_engine(name)
    one = engine.load(folder / f"one.{engine.format}", spec)
    several = engine.load(folder / f"several.{engine.format}", spec.stacked(4))
    assert (one.spec.steps, several.spec.steps, several.spec.batch) == (0, 4, one.spec.batch)
    x = rng.normal(size=(10, 32, 6)).astype(np.float32)
    stack = {"x": x, "label": (x[..., 0] > 0).astype(np.float32), "sample_weight": np.ones((10, 32), np.float32)}
    start = {**values, **initial_state(spec, values)}
    after_one, losses_one = start, []
    for number in range(10):
        batch = {name: column[number] for name, column in stack.items()}
        after_one, loss = advance(one, after_one, batch, {"learning_rate": 0.05})
        losses_one.append(loss)
    bound, rate = several.bind(start), {"learning_rate": np.array(0.05, np.float32)}
    parts = [{name: column[at : at + 4] for name, column in stack.items()} for at in (0, 4, 8)]
    losses_several = np.concatenate([bound.step(part | rate)["loss"] for part in parts])
    after_several = bound.values()
    np.testing.assert_allclose(losses_several, losses_one, atol=1e-6)
    assert losses_several.shape == (10,) and losses_one[-1] < losses_one[0]
    for name in spec.carry.values():
        np.testing.assert_allclose(after_several[name], after_one[name], atol=1e-6)
    batch = {name: column[0] for name, column in stack.items()}
    assert advance(several, start, batch, {"learning_rate": 0.05})[1] == pytest.approx(losses_one[0], abs=1e-6)


@pytest.mark.parametrize("count", [1, 33, 300])
def test_an_epoch_is_the_same_whichever_way_it_is_called(classifier, rng, count):
    """300 samples are ten batches: three calls of at most four steps, the last one partly padding."""
    spec, folder, values = classifier
    x = rng.normal(size=(count, 6)).astype(np.float32)
    label = (x[:, 0] > 0).astype(np.float32)
    weight = rng.random(count).astype(np.float32)
    found = []
    for file, graph_spec in (("one.onnx", spec), ("several.onnx", spec.stacked(4))):
        graph = open_engine("onnx").load(folder / file, graph_spec)
        shuffle = np.random.default_rng(1)
        found.append(train(graph, values, {"x": x}, label, weight, rate=0.05, epochs=3, rng=shuffle))
    (one, losses_one), (several, losses_several) = found
    assert losses_several == pytest.approx(losses_one, abs=1e-6)
    for name in values:
        np.testing.assert_allclose(several[name], one[name], atol=1e-6)


def test_a_loop_joins_what_moves_and_leaves_out_what_stays(classifier):
    """Adam's update is written once for the four tensors; what one step is told anew, the loop is told once."""
    _, folder, _ = classifier
    one, several = (onnx.load(folder / f"{name}.onnx").graph.node for name in ("one", "several"))
    [loop] = [node for node in several if node.op_type == "Scan"]
    [body] = [a.g for a in loop.attribute if a.name == "body"]
    assert sum(node.op_type == "Sqrt" for node in one) == 4
    assert sum(node.op_type == "Sqrt" for node in body.node) == 1


def test_categories_of_items_are_outside_the_loop():
    model, step = prepare(new("DIN"), Training("sgd"))
    plan = recommender_plans(model, step)[2]
    nodes = onnx.load_from_string(scan_steps(trace(plan))).graph.node
    [body] = [a.g for node in nodes if node.op_type == "Scan" for a in node.attribute if a.name == "body"]
    read = {name for node in body.node for name in node.input}
    assert "item_categories" in {name for node in nodes for name in node.input} - read


def test_a_mean_of_categories_is_the_same_by_their_shares(rng, monkeypatch):
    model = new("DIN")
    few = model.rows()
    monkeypatch.setattr(history, "FEW_CATEGORIES", 0)
    torch.testing.assert_close(model.rows(), few)
