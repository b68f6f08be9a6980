"""Run: pytest tests/test_features_text.py"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import hashing
from millstream.features.categories import hashed_ids, vocabulary_ids
from millstream.features.text import word_ids
from millstream.hashing import combine, hash_texts, seed_of

MASK = (1 << 64) - 1
TEXTS = st.lists(st.text(max_size=12), max_size=12)


def slow_mix(word):
    word = (word + 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def slow_hash(text, seed):
    total, power = 0, 1
    for byte in text.encode():
        total = (total + (byte + 1) * power) & MASK
        power = (power * 0x9E3779B97F4A7C15) & MASK
    return slow_mix((total + seed) & MASK)


def slow_combine(left, right):
    return slow_mix((left * 0x9E3779B97F4A7C15 + right) & MASK)


def slow_words(text, *, slots, ngrams, max_tokens, seed):
    words = re.findall(r"\w+", text.lower()) if text is not None else []
    ids = []
    for place in range(len(words)):
        gram = None
        for size in range(min(ngrams, len(words) - place)):
            word = slow_hash(words[place + size], seed)
            gram = word if gram is None else slow_combine(gram, word)
            ids.append(1 + gram % slots)
    return (ids + [0] * max_tokens)[:max_tokens]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, MASK), st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 3))
def test_hash_equals_the_slow_twin_on_any_slice(texts, seed, kind, skipped):
    array = pa.array(texts, kind).slice(min(skipped, len(texts)))
    assert hash_texts(array, seed).tolist() == [slow_hash(text, seed) for text in texts[skipped:]]


def test_hash_is_the_same_across_blocks(monkeypatch):
    texts = pa.array(["", "ab", "x" * 50, "", "é" * 7, "y"] * 5)
    whole = hash_texts(texts, 3)
    monkeypatch.setattr(hashing, "_BLOCK", 8)
    assert np.array_equal(hash_texts(texts, 3), whole)


def test_hash_is_fixed_for_ever():
    assert hash_texts(pa.array(["", "a", "Zürich"]), 0).tolist() == [slow_hash(t, 0) for t in ("", "a", "Zürich")]
    assert hash_texts(pa.array(["a"]), 0).tolist() == [17360999193197444373]


def test_a_pair_is_not_the_pair_turned_round():
    a, b = hash_texts(pa.array(["a"]), 0), hash_texts(pa.array(["b"]), 0)
    assert combine(a, b)[0] != combine(b, a)[0]
    assert int(combine(a, b)[0]) == slow_combine(int(a[0]), int(b[0]))


SENTENCES = st.lists(st.one_of(st.none(), st.text("abÄ_7 .,-", max_size=20)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(SENTENCES, st.integers(1, 3), st.integers(1, 6), st.integers(0, 2))
def test_words_and_ngrams_equal_the_slow_twin(texts, ngrams, max_tokens, skipped):
    options = {"slots": 1000, "ngrams": ngrams, "max_tokens": max_tokens, "seed": seed_of("note")}
    ids = word_ids(pa.array(texts, pa.string()).slice(min(skipped, len(texts))), **options)
    assert ids.tolist() == [slow_words(text, **options) for text in texts[skipped:]]


def test_marks_belong_to_words():
    ids = word_ids(pa.array(["हिन्दी भाषा"]), slots=1000, ngrams=1, max_tokens=4, seed=0)
    assert np.count_nonzero(ids) == 2


def categories():
    """The same six values in every type that holds texts."""
    texts = ["b", None, "a", "", "b", "c"]
    yield pa.array(texts)
    yield pa.array(texts, pa.large_string())
    yield pa.array(texts, pa.string_view())
    yield pa.array(["x", "y", *texts]).slice(2)
    yield pa.array(texts).dictionary_encode()
    yield pa.array(["y", *texts]).dictionary_encode().slice(1)
    yield pa.DictionaryArray.from_arrays(pa.array([1, 0, 2, 3, 4, 5]), pa.array([None, "b", "a", "", "b", "c"]))


@pytest.mark.parametrize("column", list(categories()), ids=lambda column: str(column.type)[:20])
def test_categories_are_the_same_in_every_text_type(column):
    assert vocabulary_ids(column, "c", ("a", "b"), 5).tolist() == [6, 0, 5, 7, 6, 7]
    hashed = hashed_ids(column, "c", slots=100, seed=9, first=5)
    assert hashed.tolist() == [0 if t is None else 5 + slow_hash(t, 9) % 100 for t in ("b", None, "a", "", "b", "c")]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 0, 1, None], pa.int8()),
        pa.array([1, 0, 1, None], pa.uint64()),
        pa.array([1.0, -0.0, 1.0, None]),
        pa.array(np.array([1, 0, 1], np.float16)),
        pa.array(["1", "0.0", "1.0", None]),
        pa.array([1, 0, 1, None], pa.decimal128(5, 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_equal_numbers_are_one_category_whatever_their_type(column):
    assert vocabulary_ids(column, "c", ("0", "1"), 1).tolist()[:3] == [2, 1, 2]


def test_truths_are_true_and_false():
    for column in (pa.array([True, False, None]), pa.array(["True", "FALSE", None])):
        assert vocabulary_ids(column, "c", ("false", "true"), 1).tolist() == [2, 1, 0]


def test_no_records_no_ids():
    assert vocabulary_ids(pa.array([], pa.string()), "c", ("a",), 1).shape == (0,)
    assert vocabulary_ids(pa.nulls(2), "c", ("a",), 1).tolist() == [0, 0]
    assert word_ids(pa.array([], pa.string()), slots=9, ngrams=2, max_tokens=3, seed=0).shape == (0, 3)
