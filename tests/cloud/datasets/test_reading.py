"""Tables of every origin, good and bad."""

import gzip
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.datasets import Dataset, example, listed_users, read, write_history
from cloud.datasets.reading import draw_negatives
from device_runtime.errors import InputError, StoreError
from device_runtime.history import read_history
from tests.conftest import write_tastes

HEADER = "user_id,item_id,timestamp,rating\n"


def table(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def rows(count=20, rating="5"):
    return "".join(f"u{n % 4},i{n},{1000 + n},{rating if n % 3 else '2'}\n" for n in range(count))


def test_a_table_of_users_names_them_as_interactions_do(tmp_path):
    path = table(tmp_path, "age,User-ID\n20,u1\n30,u3\n40,u3\n", "users.csv")
    assert listed_users(path) == {"u1", "u3"} < set(read(table(tmp_path, HEADER + rows())).users)
    numbers = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": pa.array([7, 12, None], pa.int32()), "gender": ["F", "M", "F"]}), numbers)
    assert listed_users(numbers) == {"7", "12"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,name\n20,u1\n", "lacks user_id; it has age, name. A table of users has user_id"),
        ("user_id\n", "lists no user"),
        ("user_id,age\nu1,3\nu2\n", "line 3: .*; mend"),
    ],
)
def test_a_table_that_lists_no_users_says_so(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        listed_users(table(tmp_path, text, "users.csv"))
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        listed_users(tmp_path / "nowhere.csv")


def test_the_example_is_movielens_latest_small():
    dataset = example()
    assert (len(dataset.users), len(dataset.items) - 1, len(dataset.events)) == (610, 9742, 100_836)
    assert dataset.positive_at == 4.0 and dataset.events.observed.all()
    toy_story = dataset.items.index("1")
    assert dataset.titles[toy_story] == "Toy Story (1995)"
    names = {dataset.categories[i] for i in dataset.item_categories[toy_story]}
    assert names == {"Animation", "Children", "Fantasy", "Adventure"}, "the rarest four of its five genres"
    assert "(no genres listed)" not in dataset.categories
    order = np.lexsort((dataset.events.timestamp, dataset.events.contributor))
    np.testing.assert_array_equal(order, np.arange(len(order)))


@pytest.mark.parametrize(
    ("name", "users", "items", "events", "liked"),
    [
        ("ml-100k", 943, 1682, 100_000, 0.554),
        ("ml-1m-users-1-2999", 2999, 3883, 487_650, 0.572),
        ("amazon-beauty-5core", 22_363, 12_101, 2 * 198_502, 0.5),
        ("taobao-userbehavior-head-43-users", 43, 3276, 2 * 4_321, 0.5),
    ],
)
def test_other_data_sets_read_as_published(shared_data, name, users, items, events, liked):
    folder = shared_data / name
    dataset = read(folder / "interactions.parquet", folder / "items.parquet")
    assert dataset.name == name
    assert (len(dataset.users), len(dataset.items) - 1, len(dataset.events)) == (users, items, events)
    assert dataset.events.label.mean() == pytest.approx(liked, abs=0.001)
    assert len(dataset.categories) > 5 and (dataset.item_categories[1:, 0] > 0).mean() > 0.9


def test_bad_rows_are_counted_with_line_and_reason(tmp_path):
    bad = [",i1,5,3", "u1,,5,3", "u1,i1,soon,3", "u1,i1,-4,3", "u1,i1,9999999999999,3", "u1,i1,5,nan", "u1,i1,5",
           "u1,i1,5,3,9", "u1,i1,6,"]  # fmt: skip
    dataset = read(table(tmp_path, HEADER + rows() + "\n".join(bad) + "\n" + rows(3)))
    assert dataset.report.dropped == {
        "another number of columns than the header": 2,
        "no user_id": 1,
        "no item_id": 1,
        "timestamp is not a number": 1,
        "timestamp is not in seconds since 1970": 2,
        "rating is not a finite number": 2,
        "the same user, item and timestamp again": 3,
    }
    assert dataset.report.examples["no user_id"] == ["line 22"]
    assert dataset.report.examples["another number of columns than the header"] == ["line 28", "line 29"]
    assert dataset.report.examples["rating is not a finite number"] == ["line 27", "line 30"]
    assert dataset.report.rows == 20 + 9 + 3 and dataset.report.kept == len(dataset.events) == 20


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,b\n1,2\n", "lacks item_id, timestamp, user_id; it has"),
        (HEADER, "no usable row: it is empty"),
        (HEADER + ",i1,5,3\n", "no usable row: 1 times no user_id"),
        (HEADER + "u1,i1,5,3\nu1,i2,6,5\n", "has 1 user; matching takes at least two"),
        (HEADER + "u1,i1,5,5\nu2,i2,6,5\n", "nothing can be learned from one class"),
        (HEADER + "u1,i1,1600000000000,5\nu2,i2,1600000000001,1\n", "look like milliseconds"),
        (HEADER + "u1,i1,5,80\nu2,i2,6,10\n", "say with --positive-at"),
    ],
)
def test_an_unusable_table_is_refused_with_a_sentence(tmp_path, text, why):
    with pytest.raises(InputError, match=why):
        read(table(tmp_path, text))


def test_what_is_not_there_or_not_a_table_is_said(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        read(tmp_path / "absent.csv")
    (tmp_path / "x.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="should be Parquet"):
        read(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no reader is called"):
        read(table(tmp_path, HEADER), reader="excel")


def test_names_of_columns_may_be_others(tmp_path):
    ours = read(table(tmp_path, HEADER + rows()))
    theirs = read(table(tmp_path, "userId,movieId,ts,stars\n" + rows(), "other.csv"))
    np.testing.assert_array_equal(ours.events.item, theirs.events.item)
    np.testing.assert_array_equal(ours.events.label, theirs.events.label)


def test_parquet_with_lists_of_categories(tmp_path):
    pq.write_table(
        pa.table({"user_id": [1, 1, 2, 2], "item_id": [7, 8, 7, 9], "timestamp": [1, 2, 3, 4], "label": [1, 0, 1, 0]}),
        tmp_path / "i.parquet",
    )
    pq.write_table(
        pa.table({"item_id": [9, 7], "genres": [["a", "b"], ["b"]], "title": ["Nine", None]}),
        tmp_path / "items.parquet",
    )
    dataset = read(tmp_path / "i.parquet", tmp_path / "items.parquet")
    assert dataset.items == ("", "9", "7", "8"), "items of the table first, then others that were seen"
    assert dataset.titles == ("", "Nine", "", "")
    assert dataset.categories == ("", "a", "b")
    assert dataset.item_categories[:, :2].tolist() == [[0, 0], [1, 2], [2, 0], [0, 0]]
    assert dataset.users == ("1", "2") and dataset.positive_at is None


def test_movielens_as_downloaded(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml-latest.zip", "w") as archive:
        archive.writestr("ml/ratings.csv", "userId,movieId,rating,timestamp\n1,10,5,100\n2,10,2.5,101\n2,11,5.0,102\n")
        archive.writestr("ml/movies.csv", 'movieId,title,genres\n10,"A, the film",Drama|Comedy\n11,B,Drama\n')
    latest = read(tmp_path / "ml-latest.zip")
    assert latest.titles == ("", "A, the film", "B") and latest.events.label.tolist() == [1, 0, 1]
    one = tmp_path / "ml-1m"
    one.mkdir()
    (one / "ratings.dat").write_text("1::10::5::100\n2::10::2::101\nbroken\n")
    (one / "movies.dat").write_bytes("10::Amélie::Drama|Comedy\n".encode("latin-1"))
    million = read(one)
    assert million.titles == ("", "Amélie") and million.report.dropped == {"not 4 columns": 1}
    old = tmp_path / "ml-100k"
    old.mkdir()
    (old / "u.data").write_text("1\t10\t5\t100\n2\t10\t2\t101\n")
    (old / "u.genre").write_text("unknown|0\nAction|1\n\n")
    (old / "u.item").write_bytes(("10|Amélie|1995||url|0|1" + "|0" * 17 + "\n").encode("latin-1"))
    hundred = read(old)
    assert hundred.titles == ("", "Amélie") and hundred.categories == ("", "Action")


def test_amazon_and_taobao_as_downloaded(tmp_path):
    reviews = [
        {"reviewerID": f"A{n % 2}", "asin": f"B{n}", "overall": 5.0 - 3 * (n % 2), "unixReviewTime": 100 + n}
        for n in range(6)
    ]
    with gzip.open(tmp_path / "reviews_5.json.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, reviews)) + "\nbroken\n")
    amazon = read(tmp_path / "reviews_5.json.gz")
    assert len(amazon.events) == 6 and amazon.report.dropped == {"not a JSON object": 1}
    csv = table(tmp_path, "0000031887,A1X,5.0,1400000000\n0000031888,A2X,1.0,1400000001\n", "ratings.csv")
    ratings = read(csv, reader="amazon")
    assert ratings.items == ("", "0000031887", "0000031888") and ratings.users == ("A1X", "A2X")
    behaviour = "".join(f"{n % 2},{n},{n % 3},pv,{1_511_544_070 + n}\n" for n in range(10))
    taobao = read(table(tmp_path, behaviour, "UserBehavior.csv"))
    assert taobao.report.negatives == 10 and len(taobao.categories) == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 30), st.integers(0, 3))
def test_negatives_are_never_what_the_user_knows(seed, events, items, each):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 3, events).astype(np.int32)
    item = rng.integers(1, items, events).astype(np.int32)
    found, at, short = draw_negatives(user, item, items, each, rng)
    assert len(found) == len(at) and len(found) + short == events * each
    known = set(zip(user.tolist(), item.tolist(), strict=True))
    assert not known & set(zip(user[at].tolist(), found.tolist(), strict=True))
    assert ((found > 0) & (found < items)).all()
    if short:  # only who knows everything, or nearly everything, gets fewer
        assert min(items - 1 - len({i for u, i in known if u == v}) for v in set(user.tolist())) <= 1 or items < 10


def test_implicit_tables_are_the_same_by_seed(tmp_path):
    path = table(tmp_path, "user_id,item_id,timestamp\n" + "".join(f"u{n % 5},i{n},{100 + n}\n" for n in range(50)))
    same = [read(path, seed=4).events.item for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], read(path, seed=5).events.item)
    dataset = read(path, negatives=3)
    assert dataset.events.label.mean() == 0.25
    np.testing.assert_array_equal(dataset.events.observed, dataset.events.label == 1)


@pytest.mark.parametrize("ratings", [True, False])
def test_a_data_set_comes_back_from_disk_as_it_was(tmp_path, ratings):
    interactions, items = write_tastes(tmp_path)
    if ratings:
        interactions = table(tmp_path, HEADER + rows())
    dataset = read(interactions, None if ratings else items)
    dataset.save(tmp_path / "data")
    again = Dataset.load(tmp_path / "data")
    for field in ("contributor", "item", "timestamp", "label", "observed"):
        np.testing.assert_array_equal(getattr(again.events, field), getattr(dataset.events, field))
    assert again.events.item.dtype == np.int32 and again.events.label.dtype == np.float32
    np.testing.assert_array_equal(again.item_categories, dataset.item_categories)
    assert (again.ratings is None) == (not ratings)
    for field in ("name", "users", "items", "titles", "categories", "positive_at", "report"):
        assert getattr(again, field) == getattr(dataset, field)


def test_a_folder_that_is_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="coda data prepare"):
        Dataset.load(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="another format"):
        Dataset.load(tmp_path)
    read(table(tmp_path, HEADER + rows())).save(tmp_path / "data")
    (tmp_path / "data" / "events.parquet").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="damaged"):
        Dataset.load(tmp_path / "data")


def test_a_history_is_what_a_device_imports(tmp_path):
    dataset = read(*write_tastes(tmp_path))
    mine = dataset.events.take(dataset.events.contributor == 3)
    write_history(dataset, mine, tmp_path / "history.csv")
    found = read_history(tmp_path / "history.csv")
    assert [event.item for event in found.events] == [dataset.items[i] for i in mine.item]
    assert [event.label for event in found.events] == mine.label.tolist() and not found.bad
