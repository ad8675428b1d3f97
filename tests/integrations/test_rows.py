from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose import Schedule
from superpose.data.windows import WindowPlan
from superpose.integrations.rows import RowTokens, StepWindows


class Table:
    """What a dataset of the datasets library is to us: a table, and rows chosen of it."""

    def __init__(self, rows, chosen=None, chunks=2):
        names = list(rows[0])
        cut = np.array_split(np.arange(len(rows)), chunks)
        self.data = pyarrow.concat_tables(
            [pyarrow.table({name: [rows[place].get(name) for place in part] for name in names}) for part in cut],
            promote_options="permissive",
        )
        self.column_names = names
        self.format = {"type": None, "columns": names}
        self._chosen = list(range(len(rows))) if chosen is None else chosen
        self._indices = None if chosen is None else SimpleNamespace(column=lambda _: pyarrow.array(chosen))
        self._rows = rows

    def __len__(self):
        return len(self._chosen)

    def __getitem__(self, number):
        return self._rows[self._chosen[number]]


def plain(row):
    """A row's tokens one by one: -1 - t for those that are not asked for."""
    mask = row.get("attention_mask") or [1] * len(row["input_ids"])
    labels = row.get("labels") or row["input_ids"]
    return [
        token if label == token else -1 - token
        for token, label, there in zip(row["input_ids"], labels, mask, strict=True)
        if there
    ]


@st.composite
def datasets(draw):
    masked, labelled = draw(st.booleans()), draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(2, 6))):
        ids = draw(st.lists(st.integers(0, 9), max_size=5))
        places = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))
        rows.append({"input_ids": ids})
        if masked:
            rows[-1]["attention_mask"] = [int(there) for there in draw(places)]
        if labelled:
            rows[-1]["labels"] = [t if asked else -100 for t, asked in zip(ids, draw(places), strict=True)]
    return rows, draw(st.none() | st.lists(st.integers(0, len(rows) - 1), min_size=1))


@pytest.mark.error(n=5)
@given(datasets())
def test_a_table_and_its_rows_are_the_same_stream(given_rows):
    rows, chosen = given_rows
    taken = [rows[place] for place in chosen] if chosen else rows
    expected = [token for row in taken for token in plain(row)]
    for dataset in (taken, Table(rows, chosen or None)):
        if not expected:
            with pytest.raises(ValueError, match="holds no tokens"):
                RowTokens(dataset)
            continue
        tokens = RowTokens(dataset, 10)
        assert len(tokens) == len(expected)
        assert tokens.read(0, len(expected)).tolist() == expected
        assert tokens.read(1, len(expected)).tolist() == [*expected[1:], expected[0]]


def test_a_dataset_of_the_datasets_library():
    library = pytest.importorskip("datasets")
    rows = [
        {"input_ids": list(range(number, number + 4)), "attention_mask": [0] * (number % 3) + [1] * (4 - number % 3)}
        for number in range(9)
    ]
    table = library.Dataset.from_list(rows)
    doubled = table.with_transform(lambda batch: {name: [2 * v for v in values] for name, values in batch.items()})
    cases = [
        (table, [plain(row) for row in rows]),
        (table.select([4, 2]), [plain(rows[4]), plain(rows[2])]),
        (table.shuffle(seed=3), [plain(row) for row in table.shuffle(seed=3)]),
        (library.concatenate_datasets([table, table.select([5])]), [plain(row) for row in [*rows, rows[5]]]),
        (table.with_format("torch"), [plain(row) for row in rows]),
        (table.with_format(columns=["input_ids"]), [row["input_ids"] for row in rows]),
        (table.remove_columns("attention_mask"), [row["input_ids"] for row in rows]),
        (doubled, [plain(row) for row in doubled]),
    ]
    for dataset, expected in cases:
        flat = [token for row in expected for token in row]
        tokens = RowTokens(dataset)
        assert tokens.read(0, len(tokens)).tolist() == flat


@pytest.mark.error(n=5)
def test_rows_of_any_length_are_one_stream_without_padding():
    tokens = RowTokens(
        [
            {"input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 1, 0]},
            {"input_ids": [0, 0, 0, 0], "attention_mask": [0, 0, 0, 0]},
            {"input_ids": [0, 0, 4, 5], "attention_mask": [0, 0, 1, 1]},
        ]
    )
    assert len(tokens) == 5
    assert tokens.row_length is None
    assert tokens.read(1, 8).tolist() == [2, 3, 4, 5, 1, 2, 3, 4]


@pytest.mark.error(n=5)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
def test_padding_on_either_side_adds_no_row_and_no_token(sides):
    """Of packed rows and of the same rows padded, steps read the same windows, and as many latents count."""
    packed = [{"input_ids": [5 * number + 1, 5 * number + 2, 5 * number + 3]} for number in range(len(sides))]
    padded = [
        {"input_ids": [0] * a + row["input_ids"] + [0] * b, "attention_mask": [0] * a + [1] * 3 + [0] * b}
        for row, (a, b) in zip(packed, sides, strict=True)
    ]
    schedule, number = Schedule(4, 2, 0.5), 3 * len(sides)
    plan = WindowPlan(schedule, 1, 1, number, seed=0)
    read = [[StepWindows(plan, RowTokens(rows), 1, 0, 1)[step] for step in range(4)] for rows in (packed, padded)]
    for one, other in zip(*read, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert "target_mask" not in other
        assert (other["input_ids"] > 0).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 1 of train_dataset has no input_ids"),
        ({"input_ids": None}, "row 1 of train_dataset has no input_ids"),
        (None, "row 1 of train_dataset has no input_ids"),
        ([1, 2.5], "row 1 of train_dataset has no list of integers as its input_ids"),
        ({"input_ids": 3}, "row 1 of train_dataset has no list of integers as its input_ids"),
        ({"input_ids": [1, None]}, "row 1 of train_dataset has no list of integers as its input_ids"),
        ({"input_ids": ["a"]}, "row 1 of train_dataset has no list of integers as its input_ids"),
        ({"input_ids": [1.5]}, "row 1 of train_dataset has no list of integers as its input_ids"),
        ({"input_ids": [[1], [2]]}, "row 1 of train_dataset has no list of integers as its input_ids"),
        (
            {"input_ids": [1, 99]},
            "row 1 of train_dataset holds the token id 99; expected 0 or more, and less than .* 50",
        ),
        ({"input_ids": [-100, 1]}, "row 1 of train_dataset holds the token id -100; expected 0 or more"),
        ({"input_ids": [1, 2], "labels": [2, 1]}, "the labels of row 1 of train_dataset are others"),
        ({"input_ids": [1, 2], "labels": [1]}, "row 1 of train_dataset has 1 labels for 2 input_ids"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "row 1 of train_dataset has 1 attention_mask for 2 input_ids"),
    ],
)
def test_a_row_that_does_not_hold_what_it_should_is_named(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        RowTokens([{"input_ids": [1, 2]}, row], 50).read(0, 4)
    assert "\n" not in str(caught.value)


def test_a_table_that_lacks_token_ids_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="train_dataset has no input_ids but text; tokenize it"):
        RowTokens(Table([{"text": "a"}, {"text": "b"}]))
    with pytest.raises(ValueError, match="row 1 of train_dataset has no input_ids"):
        RowTokens(Table([{"input_ids": [1]}, {"input_ids": None}, {"input_ids": [1]}]))
    # A row without a token is no row without a list of them, and one that was not chosen does not matter.
    assert len(RowTokens(Table([{"input_ids": [1]}, {"input_ids": None}, {"input_ids": []}], [0, 2]))) == 1
    unmasked = [{"input_ids": [1, 2], "attention_mask": [0, 1]}, {"input_ids": [3, 4], "attention_mask": None}]
    assert RowTokens(Table(unmasked)).read(0, 3).tolist() == [2, 3, 4]


def test_row_length():
    assert RowTokens([{"input_ids": [1, 2]}]).row_length == 2
    assert RowTokens([{"input_ids": [1, 2]}, {"input_ids": [1]}]).row_length == 2
    assert RowTokens([{"input_ids": [1]}, {"input_ids": [1, 2]}, {"input_ids": [3]}]).row_length is None


@pytest.mark.error(n=5)
def test_tokens_that_are_never_asked_for_are_read_all_the_same():
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, -100, 3, -100]}]
    item = StepWindows(WindowPlan(Schedule(1, 2, 1.0), 1, 1, 4, seed=0), RowTokens(rows), 1, 0, 1)[0]
    assert sorted(item["input_ids"].flatten().tolist()) == [1, 2, 3, 4]
    assert torch.equal(item["target_mask"], item["input_ids"] % 2 == 1)
    assert item["bag_size"] == 2
    assert RowTokens([{"input_ids": [1, 2, 1]}], never_asked=1).read(0, 3).tolist() == [-2, 2, -2]
