"""Events of an app mean the same samples to both runtimes, whatever their order; so do what evaluations may change."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.activity import KINDS, Activity, ActivityLog
from device_runtime.bundle import RoundSettings
from device_runtime.errors import InputError, WireError
from device_runtime.evaluating import TUNABLE, settings_of
from device_runtime.identity import rotation_text
from device_runtime.messages import to_json
from device_runtime.store import Store
from device_runtime.triggers import DEFAULTS, Trigger, check, digest
from tests.android_demo.conftest import JavaError

KIND = st.sampled_from(KINDS)


@st.composite
def events(draw):
    kind, page = draw(KIND), draw(st.sampled_from(("", "p", "q")))
    item = "" if kind.startswith("page") else draw(st.sampled_from(("a", "b", "c")))
    at = draw(st.integers(1, 60)) * 500  # half seconds, so that several fall into one
    return Activity(kind, at, item, page, draw(st.floats(0, 5)) if kind == "rating" else 0.0)


TRIGGERS = st.builds(
    Trigger, name=st.sampled_from("xyz"), sequence=st.lists(KIND, min_size=1, max_size=3).map(tuple),
    then=st.sampled_from(("positive", "negative", "rating", "round")),
    unless=st.lists(KIND, max_size=1).map(tuple), within_s=st.sampled_from((2.5, 10.0, 1800.0)),
)  # fmt: skip


def usable(triggers):
    try:
        check(triggers)
    except InputError:
        return False
    return True


def python_digest(folder, triggers, batches):
    with Store(folder / "coda.db") as store:
        log, wanted = ActivityLog(store.database), []
        for batch in batches:
            log.append(batch)
            wanted.append(sorted(digest(store, log, triggers).rounds))
        samples = [[e.item, e.timestamp, e.label, e.rating] for e in store.events()]
    return [wanted, samples]


@given(
    st.just(DEFAULTS) | st.lists(TRIGGERS, max_size=3).map(tuple).filter(usable),
    st.lists(st.lists(events(), max_size=12), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_batches_of_events_come_to_the_same_samples(java, tmp_path_factory, triggers, batches):
    told = [json.dumps([[e.kind, e.at_ms, e.item, e.page, e.value] for e in batch]).encode() for batch in batches]
    ours = json.loads(java("digest", to_json(triggers), *told))
    assert ours == python_digest(tmp_path_factory.mktemp("store"), triggers, batches)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (b"{}", "does not declare triggers: triggers: a list is expected"),
        (b'[{"name": "x", "sequence": ["tap"], "then": "round"}]', "trigger 'x': 'tap' is not one of"),
        (b'[{"name": "x", "sequence": [], "then": "round"}]', "it needs a sequence"),
        (b'[{"name": "x", "sequence": ["page_exit"], "then": "negative"}]', "must begin with an event of an item"),
        (b'[{"name": "x", "sequence": ["click"], "then": "rating"}]', "so it must end with one"),
        (b'[{"name": "x", "sequence": ["click"], "then": "gift"}]', "'then' must be one of"),
        (b'[{"name": "x", "sequence": ["click"], "then": "round", "within_s": 0}]', "within_s above 0"),
    ],
)
def test_triggers_that_could_not_fire_are_refused(java, declared, words):
    with pytest.raises(JavaError, match="InputError: .*" + words):
        java("digest", declared)


def test_events_that_cannot_be_are_refused(java):
    for wrong in (
        ["tap", 1, "a", "", 0],
        ["click", 0, "a", "", 0],
        ["click", 1, "", "", 0],
        ["page_exit", 1, "a", "", 0],
    ):
        with pytest.raises(JavaError, match="InputError: an event"):
            java("digest", to_json(DEFAULTS), json.dumps([wrong]).encode())


# -- evaluations, keys ------------------------------------------------------------------------------------------------

VALUES = st.sampled_from((0.0, 1.0, 0.5, 3.7, 32.0, 33.0, -1.0, 1e9)) | st.floats(0, 40)


@given(st.dictionaries(st.sampled_from([*sorted(TUNABLE), "candidates", "surprise"]), VALUES, max_size=4))
@settings(deadline=None, max_examples=80)
def test_an_evaluation_may_change_the_same_settings_on_a_phone(java, changes):
    base = RoundSettings(candidates=7, epochs=2)
    told = [msgspec.json.encode(base), msgspec.json.encode({"changes": changes})]
    try:
        meant = settings_of(base, changes)
    except WireError as error:
        with pytest.raises(JavaError) as refused:
            java("evaluation settings", *told)
        assert str(refused.value).startswith("WireError: an evaluation ") and str(error)[:28] in str(refused.value)
    else:
        found = msgspec.json.decode(java("evaluation settings", *told))
        assert found == {name: msgspec.to_builtins(meant)[name] for name in found}


def test_a_new_key_is_proved_by_the_same_text(java):
    device, public = "ab" * 16, "cd" * 32
    assert java("rotation", device.encode(), public.encode()) == rotation_text(device, public)
