import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data.selection import INDEX, index_entry, select

texts = st.lists(st.text("ab \n", max_size=6) | st.integers(0, 400).map(str), min_size=1, max_size=60)


def index_of(documents):
    return np.array([index_entry(document) for document in documents], dtype=INDEX)


def chosen(documents, sources=None, weights=None, max_bytes=1e9, val_fraction=0.3, val_bytes=1e9, seed=0):
    """The documents of both sides, in order, and the selection."""
    origin = np.zeros(len(documents), dtype=np.int64) if sources is None else np.array(sources)
    selection = select(index_of(documents), origin, weights, max_bytes, val_fraction, val_bytes, seed)
    sides = [[documents[number] for number in side.documents] for side in (selection.train, selection.val)]
    return *sides, selection


def plain(text):
    return " ".join(text.split())


@given(texts)
def test_every_document_once_and_on_one_side(documents):
    train, val, selection = chosen(documents)
    kinds = [plain(text) for text in train + val]
    assert sorted(kinds) == sorted({plain(text) for text in documents} - {""})
    assert selection.documents == len(kinds)
    assert len(selection.repeats) == sum(bool(text.strip()) for text in documents) - len(kinds)
    assert not len(kinds) > 1 or (train and val)


@given(texts, st.randoms())
def test_neither_order_nor_parts_nor_paths_matter(documents, random):
    shuffled = list(documents)
    random.shuffle(shuffled)
    assert chosen(documents)[:2] == chosen(shuffled)[:2]


@given(texts, texts)
def test_a_growing_corpus_moves_no_document_to_the_other_side(before, added):
    def kinds(side):
        return {plain(text) for text in side}

    # Enough of them that no side would be empty.
    some = [f"document {number}" for number in range(30)]
    train, val, _ = chosen(some + before)
    more_train, more_val, _ = chosen(some + before + added)
    assert kinds(train) <= kinds(more_train)
    assert kinds(val) <= kinds(more_val)


@pytest.mark.parametrize("fraction", [1e-9, 1.0])
def test_no_side_is_empty_where_there_are_two_documents(fraction):
    for number in range(20):
        train, val, _ = chosen([f"one {number}", f"two {number}"], val_fraction=fraction)
        assert (len(train), len(val)) == (1, 1)


def test_the_seed_is_of_the_order_alone():
    documents = [f"document {number}" for number in range(300)]
    first, second = chosen(documents, seed=0), chosen(documents, seed=1)
    assert first[0] != second[0]
    assert sorted(first[0]) == sorted(second[0])
    assert sorted(first[1]) == sorted(second[1])
    assert 60 < len(first[1]) < 120


def test_sizes_are_capped_and_what_is_held_out_is_never_trained_on():
    documents = [f"document {number:04d}" for number in range(1000)]
    train, val, selection = chosen(documents)
    few, fewer, capped = chosen(documents, max_bytes=1300, val_bytes=650)
    assert (few, fewer) == (train[:100], val[:50])
    assert [documents[number] for number in sorted(capped.beyond_train)] == sorted(train[100:])
    assert [documents[number] for number in sorted(capped.beyond_val)] == sorted(val[50:])
    assert len(selection.beyond_train) == len(selection.beyond_val) == 0


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=3), st.integers(0, 5))
def test_a_mixture_has_the_shares_it_was_told(weights, seed):
    documents = [f"{source} {number:04d}" for source in range(len(weights)) for number in range(400 * (source + 1))]
    sources = [int(text[0]) for text in documents]
    train, _, _ = chosen(documents, sources, weights, seed=seed)
    sizes = np.bincount([int(text[0]) for text in train])
    ideal = sizes.sum() * np.array(weights) / sum(weights)
    assert (abs(sizes - ideal) <= 1 + 0.01 * ideal).all()
    # One of them is used up; the sources stand mixed.
    available = np.bincount([int(text[0]) for text in chosen(documents, sources)[0]])
    assert (sizes >= available - 1).any()
    assert len({text[0] for text in train[:200]}) == len(weights) or (sizes < len(train) / 50).any()


def test_of_variants_the_same_one_is_kept_wherever_it_lies():
    variants = ["a b", "a  b", "a\tb", "a\nb "]
    kept = {tuple(chosen(variants[turn:] + variants[:turn], val_fraction=0.0)[0]) for turn in range(4)}
    assert len(kept) == 1


def test_tokens_are_documents_too():
    ids = [np.array([1, 2, 3]), np.array([1, 2]), np.array([1, 2, 3]), np.array([], dtype=np.int64)]
    assert [index_entry(document)[3] for document in ids] == [12, 8, 12, 0]
    train, _, selection = chosen(ids, val_fraction=0.0)
    assert sorted(map(len, train)) == [2, 3]
    assert len(selection.repeats) == 1


@pytest.mark.parametrize(("document", "size"), [("é", 2), (" \n", 0), ("", 0)])
def test_sizes_are_bytes_and_white_space_is_nothing(document, size):
    assert index_entry(document)[3] == size
