"""A bound on an answer's bytes, whatever an answer of so many candidates takes."""

from hypothesis import given
from hypothesis import strategies as st

from cloud.matching import bounded


@given(st.lists(st.integers(1, 60), max_size=300), st.integers(0, 90), st.integers(0, 9000))
def test_what_fits_is_given_and_nothing_larger(sizes: list[int], head: int, most: int) -> None:
    asked: list[int] = []

    def ask(count: int) -> bytes:
        asked.append(count)
        return bytes(head + sum(sizes[:count]))

    found = bounded(ask, len, len(sizes), most)
    if not most or len(ask(len(sizes))) <= most:
        assert found == ask(len(sizes))
    else:
        assert len(found) <= most or len(found) == head, "an answer without candidates may still be larger"
        assert asked[:-1] == sorted(set(asked[:-1]), reverse=True), "each time fewer, so it ends"


def test_little_of_the_budget_is_left_unused() -> None:
    for most in (500, 2_000, 9_000):
        assert 0.8 * most < len(bounded(lambda n: bytes(24 + 30 * n), len, 400, most)) <= most
