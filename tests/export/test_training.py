"""Every model, trained in every declared way, as PyTorch's own optimizers would; and declarations that do not hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from device_runtime.bundle import Training
from device_runtime.errors import InputError
from export import models
from export.graphs import recommender_plans
from export.models import MODELS, Catalogue
from export.parity import TOLERANCE, Oracle, compare
from export.training import prepare, tables_of
from tests.toy import HISTORY, ITEMS, random_features

WAYS = [
    Training("sgd", clip=0.0),
    Training("sgd", momentum=0.9, weight_decay=0.05, clip=0.01),
    Training("adam", weight_decay=0.05),
    Training("adamw", weight_decay=0.05),
    Training("adagrad", weight_decay=0.05),
]
TRAINS = ["all", "embeddings", "head", "lowrank:2", "patch"]


def new(name, history=HISTORY, items=ITEMS):
    """A model off its initial zeros, where some gradients vanish."""
    torch.manual_seed(3)
    categories = torch.randint(0, 7, (items, 4))
    categories[0] = 0
    model = models.create(name, Catalogue(items, 7, categories), history).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


class InEager:
    """Stands for an engine: runs the plan's own function, not a lowered graph."""

    name, version, format = "eager", torch.__version__, "eager"

    def __init__(self, plan):
        self.plan, self.spec = plan, plan.spec

    def __call__(self, inputs):
        found = self.plan.function({n: torch.from_numpy(np.array(a)) for n, a in inputs.items()})
        return {n: t.detach().numpy() for n, t in found.items()}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: handing them out to threads costs more than computing them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("train", TRAINS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_in_every_way_as_autograd_says(name, train):
    """Every optimizer on all parameters; on each part of them one, by turns."""
    model = new(name)
    turn = list(MODELS).index(name) + TRAINS.index(train)
    for way in WAYS if train == "all" else [WAYS[turn % len(WAYS)]]:
        training = Training(way.optimizer, way.momentum, way.weight_decay, way.clip, train)
        if name == "LR" and train in ("lowrank:2", "patch"):
            with pytest.raises(InputError, match=r"LR has no nn\.Linear"):
                prepare(model, training)
            continue
        prepared, step = prepare(model, training)
        plan = recommender_plans(prepared, step)[2]
        worst, where = compare(plan, Oracle(prepared, step), InEager(plan))
        assert 0 < worst <= TOLERANCE, (training, where)


@pytest.mark.parametrize("name", MODELS)
def test_adapters_change_nothing_until_they_are_trained(name, rng):
    model = new(name)
    features = {n: torch.from_numpy(a) for n, a in random_features(rng, 9).items()}
    for train in ("lowrank:2", "patch") if name != "LR" else ():
        adapted, step = prepare(model, Training(train=train))
        torch.testing.assert_close(adapted(**features), model(**features))
        assert {n for n, _ in model.named_parameters()} == {n for n, _ in adapted.named_parameters()} - set(
            step.trained
        )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.optimizer}{way.momentum or ''}")
def test_rows_that_are_not_in_the_batch_stay_bit_for_bit(way, rng):
    """Also under weight decay, and with momentum that is left from a batch that they were in."""
    model, step = prepare(new("DIN"), way)
    values = dict(model.named_parameters()) | dict(model.named_buffers())
    params = {n: v.detach() for n, v in values.items()}
    state = step.initial_state(params)
    touched_before = torch.zeros(ITEMS, dtype=torch.bool)
    for low, high in ((1, 100), (100, 200)):
        features = {n: torch.from_numpy(a % (high - low) + low * (a > 0)) for n, a in random_features(rng, 16).items()}
        label = torch.from_numpy(rng.random(16).astype(np.float32))
        weight = torch.ones(16)
        weight[8:] = 0  # padding is not in the batch either
        new_params, new_state, _ = step({**params}, state, features, label, weight, torch.tensor(0.1))
        ids = torch.cat([features["item"][:8], features["history"][:8].reshape(-1)])
        inside = torch.zeros(ITEMS, dtype=torch.bool)
        inside[ids] = True
        inside[0] = False
        for key in ("item.weight", *(f"{slot}:item.weight" for slot in step.optimizer.slots)):
            now, then = (new_params | new_state)[key], (params | state)[key]
            assert torch.equal(now[~inside], then[~inside]), key
        assert not torch.equal(new_params["item.weight"][inside], params["item.weight"][inside])
        assert (touched_before & ~inside).sum() > 0 or low == 1, "the second batch leaves rows of the first alone"
        touched_before |= inside
        params, state = params | new_params, state | new_state


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    way=st.sampled_from(WAYS),
    history=st.integers(1, 9),
    items=st.integers(5, 60),
    seed=st.integers(0, 1000),
)
def test_agreement_does_not_depend_on_shapes(name, way, history, items, seed):
    model, step = prepare(new(name, history, items), way)
    plan = recommender_plans(model, step)[2]
    worst, where = compare(plan, Oracle(model, step), InEager(plan), seed=seed)
    assert worst <= TOLERANCE, where


def test_what_moves_is_what_was_declared():
    model = new("DIN")
    names = {n for n, _ in model.named_parameters()}
    assert set(prepare(model, Training())[1].trained) == names
    assert set(prepare(model, Training(train="embeddings"))[1].trained) == {"item.weight", "category.weight"}
    assert set(prepare(model, Training(train="head"))[1].trained) == {"out.weight", "out.bias"}
    low = prepare(model, Training(train="lowrank:3"))[1].trained
    assert set(low) == {f"{layer}.{part}" for layer in ("ask", "hidden", "deeper") for part in ("up", "down")}
    patch = set(prepare(model, Training(train="patch"))[1].trained)
    assert patch == {f"{n}.{p}" for n in ("ask", "weigh", "hidden", "deeper", "out") for p in ("scale", "shift")}
    assert tables_of(model) == {"item.weight", "category.weight"}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training("adam", momentum=0.9), "adam takes no momentum"),
        (Training(momentum=1.0), "momentum must be at least 0 and below 1"),
        (Training(weight_decay=-1), "weight decay must be a finite number of at least 0"),
        (Training(clip=float("nan")), "clip must be a finite number"),
        (Training(train="everything"), "cannot train 'everything'; choose all, embeddings"),
        (Training(train="lowrank:0"), "cannot train 'lowrank:0'"),
        (Training(train="lowrank:500"), "rank must be below"),
    ],
)
def test_a_declaration_that_does_not_hold_is_refused(training, message):
    with pytest.raises(InputError, match=message):
        prepare(new("DIN"), training)


def test_a_head_that_is_not_there_is_said():
    class Headless(MODELS["DIN"]):
        head = ("output_layer",)

    with pytest.raises(InputError, match="Headless has no parameters that count as its head"):
        prepare(Headless(Catalogue(9, 2, torch.zeros(9, 4, dtype=torch.int64)), 3), Training(train="head"))


def test_the_loss_has_the_right_slope_where_a_model_starts_from_zeros():
    """At a logit of exactly 0 a product with (logit > 0) has no slope; the sigmoid's is a half."""
    from export.step import weighted_log_loss

    logit = torch.zeros(3, requires_grad=True)
    label = torch.tensor([0.0, 1.0, 0.3])
    weighted_log_loss(logit, label, torch.ones(3)).backward()
    other = torch.zeros(3, requires_grad=True)
    nn.functional.binary_cross_entropy_with_logits(other, label).backward()
    torch.testing.assert_close(logit.grad, other.grad)
