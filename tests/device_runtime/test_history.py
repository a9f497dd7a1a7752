import pytest

from device_runtime.errors import InputError
from device_runtime.history import History, batches, read_history
from device_runtime.store import Event


def read(tmp_path, text, name="history.csv"):
    path = tmp_path / name
    path.write_text(text)
    return read_history(path)


def test_csv_with_labels_ratings_and_sampled_negatives(tmp_path):
    found = read(tmp_path, "\ufeffitem_id,timestamp,label,rating,observed\n7,100,1,4.5,1\n8,101,,3,\n9,102,0,,0\n")
    assert found.events == [
        Event("7", 100, 1.0, 4.5), Event("8", 101, None, 3.0), Event("9", 102, 0.0, None, observed=False),
    ]  # fmt: skip
    assert not found.bad


def test_json_lines(tmp_path):
    found = read(tmp_path, '{"item_id": 7, "timestamp": 100, "label": 1}\nnonsense\n[1]\n', "history.jsonl")
    assert found.events == [Event("7", 100, 1.0)]
    assert found.bad == {"not a JSON object": 2}


def test_bad_rows_are_counted_with_line_and_reason(tmp_path):
    rows = [
        "7,100,1", ",100,1", "7,soon,1", "7,-5,1", "7,1600000000000,1", "7,100,nan", "7,100,2", "7,100,", "7,100",
        "7,100,1,9", "8,101,0.5",
    ]  # fmt: skip
    found = read(tmp_path, "item_id,timestamp,label\n" + "\n".join(rows) + "\n")
    assert [event.item for event in found.events] == ["7", "8"]
    assert found.bad == {
        "no item_id": 1,
        "timestamp is not a number": 1,
        "timestamp is not in seconds since 1970": 2,
        "label is not finite": 1,
        "label is not between 0 and 1": 1,
        "neither label nor rating": 1,
        "another number of columns than the header": 2,
    }
    assert found.examples[0] == "line 3: no item_id"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "item_id,timestamp\n1,2\n"])
def test_an_unusable_header_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="needs a header with item_id, timestamp and label or rating"):
        read(tmp_path, text)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_history(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(InputError, match="cannot read"):
        read_history(tmp_path / "binary.csv")


def test_a_long_history_is_read_some_rows_at_a_time(tmp_path):
    path = tmp_path / "long.csv"
    rows = [f"i{n},{n + 1},1" if n % 100 else f"i{n},{n + 1},7" for n in range(25_000)]
    path.write_text("\n".join(["item_id,timestamp,label", *rows]))
    history = History()
    found = list(batches(path, history))
    assert [len(batch) for batch in found] == [10_000, 10_000, 4_750]
    assert history.bad == {"label is not between 0 and 1": 250} and not history.events
    assert [event for batch in found for event in batch] == read_history(path).events
