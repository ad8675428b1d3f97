"""Code as strangers write it: no error is found where none is, and each that was made is found, alone."""

from pathlib import Path

import pytest

from superpose.conform import conform, load, passes

SUBJECTS = Path(__file__).parent / "subjects"

NO_SUBJECTS = {"two_files_model"}
"""Imported by another."""

WRONG = {
    "bare_loss_rows_counted": {4},
    "batchmean_of_sequences": {2, 7},
    "bidirectional": {1},
    "binary_cross_entropy": {2, 7},
    "body_on_tokens": {11},
    "cap_forgotten": {6},
    "cross_entropy_in_a_loop": {3},
    "duplicates_lost": {4},
    "duplicates_once": {4},
    "embeddings_never_trained": {11},
    "embeddings_without_gradient": {11},
    "evaluation_in_bags": {7},
    "expanded_logits": {3},
    "flattened_one_hot": {2},
    "flops_by_raw_tokens": {12},
    "head_in_a_loop": {3},
    "head_of_its_own": {6, 11},
    "ignored_still_counted": {4},
    "input_only_last_token": {1},
    "inputs_cut_from_labels": {1},
    "loss_over_s": {2},
    "mask_strided": {5},
    "maximum_of_the_bag": {5},
    "mean_of_micro_batches": {4},
    "micro_batches_not_divided": {4},
    "nan_gradient": {4},
    "nan_rows": {4},
    "never_recovers": {7, 11},
    "no_shift": {1, 7},
    "ordinary_bidirectional": {1},
    "ordinary_leaking_documents": {5},
    "ordinary_mean_of_means": {4},
    "ordinary_not_divided": {4},
    "ordinary_not_shifted": {1},
    "ordinary_padding_in_the_count": {4},
    "ordinary_shifted_twice": {1},
    "ordinary_wrong_ignored_id": {4, 5},
    "ordinary_padding_attended": {5},
    "output_only_from_itself": {1},
    "padding_in_the_mean": {5},
    "padding_predicted": {4, 5},
    "position_is_step_times_size": {9},
    "position_table_in_tokens": {6},
    "positions_of_tokens": {6},
    "random_windows_unseeded": {9},
    "recovery_reads_again": {9},
    "resume_starts_the_epoch": {9},
    "rows_and_positions_mixed": {1, 7},
    "scale_forgotten": {6},
    "schedule_forgets_on_resume": {8},
    "schedule_of_epoch_length": {8},
    "schedule_rounds_twice": {8},
    "shifted_by_one": {1},
    "shifted_in_data_and_model": {1, 7},
    "sliding_bags": {1, 3, 11},
    "softmax_over_positions": {2, 7},
    "sum_and_loss_over_s": {2, 5},
    "summed_cross_entropies": {2},
    "summed_embeddings": {5},
    "summed_in_bfloat16": {5},
    "token_by_token_loader": {10},
    "tokens_seen_are_latents": {12},
    "value_embeddings_strided": {6},
    "view_the_wrong_way": {1},
    "weights_not_normalised": {2},
}
"""The errors each one makes."""


def names(folder):
    return sorted(path.stem for path in (SUBJECTS / folder).glob("*.py") if path.stem not in NO_SUBJECTS)


def judged(folder, name):
    return conform(load(str(SUBJECTS / folder / f"{name}.py")), ordinary=name.startswith("ordinary_"))


def test_there_are_many_and_each_wrong_one_has_its_errors():
    assert len(names("right")) >= 30
    assert names("wrong") == sorted(WRONG)
    assert {error for errors in WRONG.values() for error in errors} == set(range(1, 13))


@pytest.mark.parametrize("name", names("right"))
def test_right_code_passes(name):
    verdicts = judged("right", name)
    assert not {v.check: v.reason for v in verdicts if v.state == "wrong"}
    assert passes(verdicts), {v.check: v.reason for v in verdicts if v.promised and v.state != "right"}


@pytest.mark.parametrize("name", WRONG)
def test_each_error_is_found_and_no_other(name):
    found = {v.error: v.reason for v in judged("wrong", name) if v.state == "wrong"}
    assert set(found) == WRONG[name], found
