"""Our pure step against PyTorch's own loss, clipping and optimizers."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from export.graphs import logits_of
from export.step import SGD, Adam, Step, weighted_log_loss
from tests.toy import random_features

OPTIMIZERS = [
    (SGD(), lambda p, lr: torch.optim.SGD(p, lr)),
    (SGD(momentum=0.9, weight_decay=0.01), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=0.01)),
    (Adam(weight_decay=0.1), lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1)),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS, ids=["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_step_moves_every_parameter_as_pytorch_does(small_din, rng, ours, theirs, clip):
    model = copy.deepcopy(small_din).double()
    names = tuple(n for n, _ in model.named_parameters())
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    step = Step(logits_of(model), names, ours, clip)
    state = step.initial_state(params)
    optimizer, rate = theirs(model.parameters(), 0.1), torch.tensor(0.1, dtype=torch.float64)
    for _ in range(3):
        features = {n: torch.from_numpy(v) for n, v in random_features(rng, 16).items()}
        label = torch.from_numpy(rng.random(16))
        weight = torch.from_numpy(rng.random(16).round())
        params, state, loss = step({**params, **buffers}, state, features, label, weight, rate)
        optimizer.zero_grad()
        expected = nn.functional.binary_cross_entropy_with_logits(model(**features), label, weight, reduction="sum")
        expected = expected / weight.sum()
        expected.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(params[name], parameter.detach(), atol=1e-10, rtol=1e-9)


def test_only_the_parameters_that_are_named_move(small_din, rng):
    params = {n: p.detach() for n, p in small_din.named_parameters()} | dict(small_din.named_buffers())
    features = {n: torch.from_numpy(v) for n, v in random_features(rng, 8).items()}
    step = Step(logits_of(small_din), ("out.weight", "out.bias"), SGD())
    new, _, _ = step(params, {}, features, torch.ones(8), torch.ones(8), torch.tensor(0.1))
    assert set(new) == {"out.weight", "out.bias"}
    assert not torch.equal(new["out.weight"], params["out.weight"])


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(0, 1), st.floats(0, 5)), min_size=1, max_size=20))
def test_the_loss_is_finite_wherever_the_logits_are(rows):
    logit, label, weight = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    logit.requires_grad_()
    loss = weighted_log_loss(logit, label, weight)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logit.grad).all()


def test_a_batch_of_padding_alone_has_no_loss_and_no_gradient():
    logit = torch.tensor([3.0, -2.0], requires_grad=True)
    loss = weighted_log_loss(logit, torch.tensor([0.0, 1.0]), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0 and (logit.grad == 0).all()


def test_factored_attention_is_the_papers_attention(small_din):
    """W·[q, h, q*h] + b by one matrix per sample equals the product with the concatenation."""
    d = 8
    q, h = torch.randn(5, d), torch.randn(5, 6, d)
    matrix = small_din.behave + q.unsqueeze(2) * small_din.interact
    factored = torch.bmm(h, matrix) + small_din.ask(q).unsqueeze(1)
    spread = q.unsqueeze(1).expand(5, 6, d)
    whole = torch.cat([small_din.ask.weight, small_din.behave.T, small_din.interact.T], 1)
    plain = torch.cat([spread, h, spread * h], -1) @ whole.T + small_din.ask.bias
    torch.testing.assert_close(factored, plain, atol=1e-5, rtol=1e-5)
