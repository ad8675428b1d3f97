import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose import (
    IGNORE_INDEX,
    MODES,
    document_positions,
    fold,
    fold_mask,
    shift_labels,
    split_window,
    window_length,
)

shapes = {"rows": st.integers(1, 3), "latents": st.integers(1, 6), "bag_size": st.integers(1, 5)}


def window_of(rows, latents, bag_size, mode="full"):
    length = window_length(latents, bag_size, mode)
    return torch.arange(rows * length).view(rows, length)


@pytest.mark.error(n=1)
def test_bags_against_indices_written_by_hand():
    inputs, targets = split_window(torch.arange(12).view(1, 12), bag_size=4)
    assert inputs.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert targets.tolist() == [[[4, 5, 6, 7], [8, 9, 10, 11]]]


@pytest.mark.error(n=1)
def test_other_modes_against_indices_written_by_hand():
    inputs, targets = split_window(torch.arange(12).view(1, 12), bag_size=4, mode="input")
    assert inputs.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert targets.tolist() == [[4, 8]]
    inputs, targets = split_window(torch.arange(6).view(1, 6), bag_size=3, mode="output")
    assert inputs.tolist() == [[0, 1, 2]]
    assert targets.tolist() == [[[1, 2, 3], [2, 3, 4], [3, 4, 5]]]


@pytest.mark.error(n=1)
@given(**shapes, mode=st.sampled_from(MODES))
def test_every_position_predicts_exactly_what_follows_its_own_input(rows, latents, bag_size, mode):
    window = window_of(rows, latents, bag_size, mode)
    inputs, targets = split_window(window, bag_size, mode)
    assert inputs.shape[:2] == targets.shape[:2] == (rows, latents)
    width = bag_size if mode == "full" or mode == "output" else 1
    last = inputs.reshape(rows, latents, -1)[..., -1]
    expected = last[..., None] + 1 + torch.arange(width)
    assert torch.equal(targets.reshape(rows, latents, -1), expected)


@given(**shapes)
def test_all_tokens_go_in_once_and_come_out_once_over_windows_a_stride_apart(rows, latents, bag_size):
    stride = bag_size * latents
    stream = torch.arange(rows * stride + bag_size)
    window = stream.unfold(0, window_length(latents, bag_size), stride)
    inputs, targets = split_window(window, bag_size)
    assert inputs.flatten().tolist() == list(range(rows * stride))
    assert targets.flatten().tolist() == list(range(bag_size, rows * stride + bag_size))


@pytest.mark.error(n=1)
@given(**shapes)
def test_shifted_labels_are_the_window_targets_where_the_row_holds_them(rows, latents, bag_size):
    window = window_of(rows, latents, bag_size)
    _, targets = split_window(window, bag_size)
    labels = window[:, 1 : bag_size * latents + 1]  # what a framework that shifts by one hands over
    shifted = shift_labels(labels, bag_size)
    assert shifted.shape == targets.shape
    known = targets <= labels[:, -1].view(-1, *[1] * (targets.dim() - 1))
    assert torch.equal(shifted[known], targets[known])
    assert (shifted[~known] == IGNORE_INDEX).all()


@pytest.mark.error(n=5)
def test_a_bag_is_attended_to_if_any_of_its_tokens_is():
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]])
    assert fold_mask(mask, 2).tolist() == [[False, True, True, False]]


@pytest.mark.error(n=6)
def test_side_inputs_fold_as_tokens_do():
    features = torch.randn(2, 6, 5)
    assert torch.equal(fold(features, 3), torch.stack([features[:, :3], features[:, 3:]], dim=1))


@pytest.mark.parametrize(
    ("window", "bag_size", "mode"),
    [
        (torch.zeros(2, 11), 4, "full"),
        (torch.zeros(2, 4), 4, "full"),
        (torch.zeros(2, 1), 1, "full"),
        (torch.zeros(2, 4), 4, "output"),
        (torch.zeros(8), 4, "full"),
    ],
)
def test_windows_that_do_not_fit_are_refused_with_advice(window, bag_size, mode):
    with pytest.raises(ValueError, match=r"give|expected"):
        split_window(window, bag_size, mode)


def test_rows_of_broken_bags_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        fold(torch.zeros(1, 6), 4)


END = 0


def positions(bags):
    """One latent at a time: restarts where a token follows an end of text, within the bag or since the one before."""
    out, count, ended = [], -1, False
    for bag in bags:
        starts = False
        for token in bag:
            if token == IGNORE_INDEX:
                continue
            starts |= ended
            ended = token == END
        count = 0 if starts or count < 0 else count + 1
        out.append(count)
    return out


@pytest.mark.error(n=6)
@given(st.integers(1, 4), st.integers(1, 8), st.data())
def test_positions_restart_where_a_document_starts(bag_size, latents, data):
    """Bags are filled from the front, as those of aligned documents are; none is empty."""
    rows = []
    for _ in range(latents):
        held = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=bag_size))
        rows.append(held + [IGNORE_INDEX] * (bag_size - len(held)))
    inputs = torch.tensor([rows])
    assert document_positions(inputs, END)[0].tolist() == positions(rows)
    if bag_size == 1:
        assert document_positions(inputs[..., 0], END)[0].tolist() == positions(rows)


@pytest.mark.error(n=5)
@given(**shapes, mode=st.sampled_from(MODES), data=st.data())
def test_tokens_that_are_never_asked_for_leave_the_targets_alone(rows, latents, bag_size, mode, data):
    window = window_of(rows, latents, bag_size, mode)
    places = st.lists(st.integers(0, 1), min_size=window.numel(), max_size=window.numel())
    mask = torch.tensor(data.draw(places)).view_as(window)
    inputs, targets = split_window(window, bag_size, mode)
    same_inputs, asked = split_window(window, bag_size, mode, mask)
    assert torch.equal(same_inputs, inputs)
    kept = set(window[mask == 1].tolist())
    for target, left in zip(targets.flatten().tolist(), asked.flatten().tolist(), strict=True):
        assert left == (target if target in kept else IGNORE_INDEX)
