from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shards.repeats import Repeats
from shards.seen import hash64


@given(st.lists(st.text("ab", max_size=3), max_size=50))
def test_exactly_what_stands_twice_is_found(texts: list[str]) -> None:
    repeats = Repeats()
    for text in texts:
        repeats.add(text)
    assert len(repeats) == len(texts)
    assert repeats.found() == {hash64(text) for text, count in Counter(texts).items() if count > 1}
