"""What becomes of new weights in a round: all of them serve, or a part, or none; a real server, a real engine."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from device_runtime import personalize
from device_runtime.model import Model
from tests.device_runtime.phones import always


def test_new_weights_serve_if_the_judge_says_so_and_else_do_not(phone, monkeypatch):
    always(monkeypatch, False)
    assert phone.round().report.outcome == "kept"
    base = phone.ranking()
    assert phone.home.store.weights() is None
    always(monkeypatch, True)
    first = phone.round()
    assert first.report.outcome == "activated"
    assert phone.home.store.weights() == (first.report.round, 2)
    assert phone.ranking() != base
    second = phone.round()
    files = {path.name for path in (phone.home.path / "weights").iterdir()}
    now = second.report.round
    assert files == {f"{now}.safetensors", f"{now}.judged.safetensors"}, "superseded weights are removed"


def test_weights_that_serve_have_learned_from_what_the_judge_saw(phone, monkeypatch):
    real, seen = personalize.learn_held_out, []

    def learn(tuned, *rest):
        seen.append((tuned, real(tuned, *rest)))
        return seen[-1][1]

    counts, real_tune = [], personalize.tune

    def tune(model, weights, table, local, *rest):
        counts.append(len(local))
        return real_tune(model, weights, table, local, *rest)

    monkeypatch.setattr(personalize, "learn_held_out", learn)
    monkeypatch.setattr(personalize, "tune", tune)
    always(monkeypatch, True)
    report = phone.round().report
    [(tuned, learned)] = seen
    assert (
        counts == [report.local - report.verdict.samples, report.local]
        and [one.phase for one in report.phases].count("tune") == 2
    )
    serving = phone.home.active_weights(phone.home.model(phone.engine))
    for name, tensor in learned.dense.items():
        np.testing.assert_array_equal(serving.dense[name], tensor)
    assert any((learned.dense[name] != before).any() for name, before in tuned.weights.dense.items())
    judged = phone.home.judged_weights(phone.home.model(phone.engine))
    for name, tensor in tuned.weights.dense.items():
        np.testing.assert_array_equal(judged.dense[name], tensor, "the next ones are compared with what saw as little")
    always(monkeypatch, False)
    again = phone.round().report.verdict
    assert len(seen) == 1, "what is refused learns nothing more"
    assert again.auc_before == report.verdict.auc_after, "the same samples, judged by weights that never saw them"
    for path in (phone.home.path / "weights").glob("*.judged.*"):
        path.write_bytes(b"damaged")
    assert phone.round().report.outcome == "kept", "those that serve are the yardstick then"


@pytest.mark.parametrize("learn", [True, False])
def test_where_all_of_the_way_harms_half_of_it_serves(phone, monkeypatch, learn):
    seen = {}
    real_tune, real_learn, real_judge = personalize.tune, personalize.learn_held_out, personalize.judge

    def tuned(*given):
        return seen.setdefault("tuned", real_tune(*given))

    def learned(*given):
        return seen.setdefault("learned", real_learn(*given))

    def half_alone(*given):
        seen["asked"] = seen.get("asked", 0) + 1
        return msgspec.structs.replace(real_judge(*given), activate=seen["asked"] == 2)

    for name, one in (("tune", tuned), ("learn_held_out", learned), ("judge", half_alone)):
        monkeypatch.setattr(personalize, name, one)
    with_settings(monkeypatch, learn_held_out=learn)
    report = phone.round().report
    assert ("learned" in seen) == learn
    assert report.outcome == "activated" and report.verdict.share == 0.5 and "50% of the way" in report.verdict.reason
    opened = phone.home.model(phone.engine)
    serving, judged = phone.home.active_weights(opened), phone.home.judged_weights(opened)
    tuned = seen["tuned"].weights
    for whole, half in ((seen["learned"] if learn else tuned, serving), (tuned, judged)):
        for name, tensor in whole.dense.items():
            np.testing.assert_allclose(half.dense[name], (opened.base.dense[name] + tensor) / 2, atol=1e-6)


def test_what_the_filter_knew_of_kept_samples_is_told_to_tuning(phone, monkeypatch):
    seen, real = [], personalize.tune

    def tune(model, weights, table, local, kept, *rest):
        if kept is not None:
            label, logit = kept.samples.labels, model.logits(kept.samples, table, weights)
            np.testing.assert_allclose(kept.change, np.log(label / (1 - label)) - logit, atol=1e-4)
        seen.append(kept is not None and len(kept.samples))
        return real(model, weights, table, local, kept, *rest)

    monkeypatch.setattr(personalize, "tune", tune)
    always(monkeypatch, True)
    report = phone.round().report
    assert seen == [report.kept, False] and report.kept > 0, "what serves is tuned on local samples alone"


def test_what_serves_has_made_as_many_passes_as_held_out_samples_allowed(phone, monkeypatch):
    made, real = [], personalize.tune

    def tune(model, weights, table, local, kept, settings, *rest):
        made.append((settings.epochs, real(model, weights, table, local, kept, settings, *rest)))
        return made[-1][1]

    monkeypatch.setattr(personalize, "tune", tune)
    always(monkeypatch, True)
    with_settings(monkeypatch, epochs=40, patience=1)
    phone.round()
    [(most, first), (asked, anew)] = made
    assert most == 40 and first.passes < 40 and asked == anew.passes == first.passes
    assert phone.home.store.rounds()[-1].progress.passes == first.passes


def with_settings(monkeypatch, **changes):
    """Bundles are opened as if they had been exported with other settings."""
    real = Model.open

    def opened(*given):
        model = real(*given)
        settings = msgspec.structs.replace(model.manifest.settings, **changes)
        model.manifest = msgspec.structs.replace(model.manifest, settings=settings)
        return model

    monkeypatch.setattr(Model, "open", opened)
