"""The graphs of a bundle, as pure functions over named tensors, with their specs and example inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from device_runtime.engines.spec import BATCH, GraphSpec, Role, TensorSpec
from device_runtime.samples import Feature
from export.models.base import Recommender
from export.models.classifier import SampleClassifier
from export.step import SGD, Step

NamedTensors = Mapping[str, Tensor]
Moved = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]
"""New weights, new optimizer state, loss."""

TRAIN_BATCH = 32
SCORE_BATCH = 128
EXAMPLE_ROWS = 211
"""Rows of sliced tensors while tracing: a number that no other dimension has, so that symbols stay apart."""
MAX_ROWS = 1 << 14
JOINED = "joined"


@dataclass(frozen=True)
class GraphPlan:
    """A graph before lowering: `function(inputs by name) -> outputs by name`, both in the spec's order.

    joined: of a step graph, the same step over its dense trained weights as one vector.
    """

    name: str
    function: Callable[[NamedTensors], dict[str, Tensor]]
    spec: GraphSpec
    examples: Mapping[str, Tensor]
    joined: Joined | None = None


@dataclass(frozen=True)
class Joined:
    """A step whose dense trained weights are one vector, and so is each of their optimizer slots: an update is then a
    few operators, not as many for each tensor.

    plan: its vectors are called `JOINED` and `SLOT:JOINED`. members: a vector's tensors in order, and their shapes.
    """

    plan: GraphPlan
    members: tuple[tuple[str, tuple[int, ...]], ...]

    def vectors(self) -> dict[str, list[str]]:
        """Each vector's name -> those of the tensors that it is made of."""
        found = {}
        for name in self.plan.spec.carry.values():
            slot, colon, of = name.rpartition(":")
            if of == JOINED:
                found[name] = [f"{slot}{colon}{member}" for member, _ in self.members]
        return found


def recommender_plans(model: Recommender, step: Step) -> list[GraphPlan]:
    """`encode`, `score` and `step` of a recommender."""
    weights = _weights(model)

    def encode(inputs: NamedTensors) -> dict[str, Tensor]:
        return {"embedding": _call_encode(model, inputs, _names(model.schema.features))}

    def score(inputs: NamedTensors) -> dict[str, Tensor]:
        return {"logit": logits_of(model)(inputs, inputs)}

    features = feature_examples(model, SCORE_BATCH)
    scored = TensorSpec("logit", "float32", (BATCH,), "output")
    embedded = TensorSpec("embedding", "float32", (BATCH, model.width), "output")
    return [
        _plan("encode", encode, weights, features, (embedded,)),
        _plan("score", score, weights, features, (scored,)),
        _step_plan("step", step, weights, feature_examples(model, TRAIN_BATCH)),
    ]


def classifier_plans(classifier: SampleClassifier, step: Step) -> list[GraphPlan]:
    """`classifier_score` and `classifier_step`."""
    weights = _weights(classifier)

    def score(inputs: NamedTensors) -> dict[str, Tensor]:
        return {"logit": functional_call(classifier, _own(classifier, inputs), (inputs["x"],))}

    def x(batch: int) -> dict[TensorSpec, Tensor]:
        generator = torch.Generator().manual_seed(0)
        spec = TensorSpec("x", "float32", (BATCH, classifier.inputs), "feature")
        return {spec: torch.randn(batch, classifier.inputs, generator=generator)}

    scored = TensorSpec("logit", "float32", (BATCH,), "output")
    return [
        _plan("classifier_score", score, weights, x(SCORE_BATCH), (scored,)),
        _step_plan("classifier_step", step, weights, x(TRAIN_BATCH)),
    ]


def logits_of(model: nn.Module) -> Callable[[NamedTensors, NamedTensors], Tensor]:
    """`logits(params, features)` of a module, for `Step`. Names that the module does not own are left out."""

    def logits(params: NamedTensors, features: NamedTensors) -> Tensor:
        if isinstance(model, Recommender):
            wanted = {f.name: features[f.name] for f in model.schema.features}
            output: Tensor = functional_call(model, _own(model, params), (), wanted)
        else:
            output = functional_call(model, _own(model, params), (features["x"],))
        return output

    return logits


def feature_examples(model: Recommender, batch: int, rows: int = EXAMPLE_ROWS) -> dict[TensorSpec, Tensor]:
    """Random features that fit the model's schema, with short, long and empty histories among them."""
    generator = torch.Generator().manual_seed(0)
    examples = {}
    for feature in model.schema.features:
        spec = _feature_spec(feature)
        shape = (batch, *(d for d in spec.shape if isinstance(d, int)))
        if feature.kind == "float":
            examples[spec] = torch.randn(shape, generator=generator)
        elif feature.kind == "id":
            examples[spec] = torch.randint(1, rows, shape, generator=generator)
        else:
            ids = torch.randint(1, rows, shape, generator=generator)
            lengths = torch.randint(0, feature.bound + 1, (batch, 1), generator=generator)
            examples[spec] = torch.where(torch.arange(feature.bound) < lengths, ids, 0)
    return examples


def _feature_spec(feature: Feature) -> TensorSpec:
    shape = (BATCH,) if feature.kind == "id" else (BATCH, feature.bound)
    return TensorSpec(
        feature.name, "float32" if feature.kind == "float" else "int64", shape, "feature", feature.vocabulary
    )


def _weights(module: nn.Module) -> dict[TensorSpec, Tensor]:
    """Specs and example values of a module's parameters and buffers, sliced ones cut to `EXAMPLE_ROWS`."""
    sliced = module.sliced if isinstance(module, Recommender) else {}
    found = {}
    roles: tuple[tuple[Role, Sequence[tuple[str, Tensor]]], ...] = (
        ("param", list(module.named_parameters())),
        ("attribute", list(module.named_buffers())),
    )
    for role, tensors in roles:
        for name, tensor in tensors:
            table = sliced.get(name, "")
            value = tensor.detach().clone()
            if table:
                value = value[:EXAMPLE_ROWS] if len(value) >= EXAMPLE_ROWS else _stretch(value)
            shape = (f"{table}_rows", *value.shape[1:]) if table else tuple(value.shape)
            found[TensorSpec(name, str(value.dtype).removeprefix("torch."), shape, role, table)] = value.clone()
    return found


def _stretch(value: Tensor) -> Tensor:
    return value[torch.arange(EXAMPLE_ROWS) % len(value)]


def _plan(
    name: str,
    function: Callable[[NamedTensors], dict[str, Tensor]],
    weights: Mapping[TensorSpec, Tensor],
    features: Mapping[TensorSpec, Tensor],
    outputs: tuple[TensorSpec, ...],
    carry: Mapping[str, str] | None = None,
) -> GraphPlan:
    inputs = {**weights, **features}
    tables = {str(s.shape[0]) for s in inputs if s.table and s.role in ("param", "attribute", "state")}
    most = len(next(iter(features.values())))
    bounds = {BATCH: (1, most)} | dict.fromkeys(sorted(tables), (2, MAX_ROWS))
    spec = GraphSpec(tuple(inputs), outputs, dict(carry or {}), bounds)
    return GraphPlan(name, function, spec, {s.name: value for s, value in inputs.items()})


def _step_plan(
    name: str, step: Step, weights: Mapping[TensorSpec, Tensor], features: Mapping[TensorSpec, Tensor]
) -> GraphPlan:
    def moved(inputs: NamedTensors) -> Moved:
        params = {spec.name: inputs[spec.name] for spec in weights}
        return step(params, inputs, inputs, inputs["label"], inputs["sample_weight"], *_rates(inputs))

    plan = _carrying(name, step, moved, weights, step.trained, features)
    members = tuple(
        (spec.name, tuple(value.shape))
        for spec, value in weights.items()
        if spec.name in step.trained and not spec.table and spec.name not in step.tables
    )
    if len(members) < 2:
        return plan
    sizes = [math.prod(shape) for _, shape in members]
    names = {member for member, _ in members}
    others = {spec: value for spec, value in weights.items() if spec.name not in names}

    def moved_together(inputs: NamedTensors) -> Moved:
        parts = torch.split(inputs[JOINED], sizes)
        apart = {member: part.reshape(shape) for (member, shape), part in zip(members, parts, strict=True)}
        params = {**{spec.name: inputs[spec.name] for spec in others}, **apart}
        grads, loss = step.gradients(params, inputs, inputs["label"], inputs["sample_weight"])
        vector = torch.cat([grads[member].reshape(-1) for member, _ in members])
        joined = {JOINED: vector} | {n: g for n, g in grads.items() if n not in names}
        return *step.move({**params, JOINED: inputs[JOINED]}, joined, inputs, *_rates(inputs)), loss

    vector = torch.cat([value.reshape(-1) for spec, value in weights.items() if spec.name in names])
    held = {TensorSpec(JOINED, "float32", (sum(sizes),), "param"): vector, **others}
    trained = (JOINED, *(n for n in step.trained if n not in names))
    return replace(plan, joined=Joined(_carrying(name, step, moved_together, held, trained, features), members))


def _carrying(
    name: str,
    step: Step,
    moved: Callable[[NamedTensors], Moved],
    weights: Mapping[TensorSpec, Tensor],
    trained: Sequence[str],
    features: Mapping[TensorSpec, Tensor],
) -> GraphPlan:
    """A step graph over these weights, of which some are trained and so carried, with the optimizer's state."""
    values = {spec.name: value for spec, value in weights.items()}
    by_name = {spec.name: spec for spec in weights}
    state: dict[TensorSpec, Tensor] = {}
    for key, value in step.initial_state(values, trained).items():
        of = by_name.get(key.partition(":")[2])
        state[TensorSpec(key, "float32", of.shape if of else (), "state", of.table if of else "")] = value
    generator = torch.Generator().manual_seed(1)
    weight = torch.ones(TRAIN_BATCH)
    weight[-3:] = 0
    batch = {
        TensorSpec("label", "float32", (BATCH,), "label"): torch.rand(TRAIN_BATCH, generator=generator).round(),
        TensorSpec("sample_weight", "float32", (BATCH,), "weight"): weight,
        TensorSpec("learning_rate", "float32", (), "hyper"): torch.tensor(
            0.05 if isinstance(step.optimizer, SGD) else 0.005
        ),
    }
    if not step.rows.isdisjoint(step.trained):
        batch[TensorSpec("table_rate", "float32", (), "hyper")] = torch.tensor(0.5)

    def function(inputs: NamedTensors) -> dict[str, Tensor]:
        new, state, loss = moved(inputs)
        return {f"new:{n}": v for n, v in (new | state).items()} | {"loss": loss}

    carried = {spec.name: spec for spec in (*weights, *state)}
    order = function({**values, **{s.name: v for s, v in {**state, **features, **batch}.items()}})
    outputs = tuple(
        TensorSpec("loss", "float32", (), "output")
        if key == "loss"
        else _as_output(carried[key.removeprefix("new:")], key)
        for key in order
    )
    carry = {key: key.removeprefix("new:") for key in order if key != "loss"}
    return _plan(name, function, {**weights, **state}, {**features, **batch}, outputs, carry)


def _rates(inputs: NamedTensors) -> tuple[Tensor, Tensor | None]:
    return inputs["learning_rate"], inputs.get("table_rate")


def _as_output(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, spec.dtype, spec.shape, "output", spec.table)


def without_unused(plan: GraphPlan, used: set[str]) -> GraphPlan:
    """The plan with only those inputs that its graph reads (an encoder does not read the ranking layers)."""
    inputs = tuple(t for t in plan.spec.inputs if t.name in used)
    symbols = {d for t in inputs for d in t.shape if isinstance(d, str)}
    bounds = {name: bound for name, bound in plan.spec.bounds.items() if name in symbols}
    spec = GraphSpec(inputs, plan.spec.outputs, plan.spec.carry, bounds)
    return replace(plan, spec=spec, examples={n: v for n, v in plan.examples.items() if n in used})


def _own(module: nn.Module, values: NamedTensors) -> dict[str, Tensor]:
    names = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
    return {n: v for n, v in values.items() if n in names}


class _Encoder(nn.Module):
    """Gives `encode` the name `forward`, which is what `functional_call` calls."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, **features: Tensor) -> Tensor:
        return self.model.encode(**features)


def _call_encode(model: Recommender, inputs: NamedTensors, names: Sequence[str]) -> Tensor:
    own = {f"model.{n}": v for n, v in _own(model, inputs).items()}
    output: Tensor = functional_call(_Encoder(model), own, (), {n: inputs[n] for n in names})
    return output


def _names(features: Sequence[Feature]) -> list[str]:
    return [f.name for f in features]
