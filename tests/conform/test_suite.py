import pytest
import torch

from superpose.conform import ERRORS, Implementation, conform
from superpose.conform.probe import VOCAB_SIZE, Probe, read_step, window_of
from superpose.errors import UserError
from tests.conform import implementations as written


def verdicts(implementation):
    return {finding.error: finding.verdict for finding in conform(implementation)}


def wrong(implementation):
    """The errors found, and what they were found by."""
    return {f.error: f.evidence for f in conform(implementation) if f.verdict in ("wrong", "raised")}


def test_superpose_makes_none_of_the_twelve():
    found = conform(written.SUPERPOSE)
    assert [(finding.error, finding.verdict) for finding in found] == [(number, "right") for number in ERRORS]
    assert not wrong(written.SUPERPOSE_PARTS)
    assert not wrong(written.SUPERPOSE_CORE)


@pytest.mark.parametrize("name", written.MUTANTS)
def test_each_planted_error_is_found_and_nothing_else(name):
    errors, mutant = written.MUTANTS[name]
    found = wrong(mutant)
    assert set(found) == set(errors), found


def test_all_twelve_are_planted():
    assert {errors[0] for errors, _ in written.MUTANTS.values()} == set(ERRORS)


def test_patch_style_passes_where_it_is_right():
    found = verdicts(Implementation(step=written.patch_step))
    # One cross-entropy for each place is one softmax for each place.
    assert [error for error, verdict in found.items() if verdict == "wrong"] == [3]
    assert {error for error, verdict in found.items() if verdict == "right"} == {1, 2, 4, 6, 7, 11}


def test_listing_style_passes_where_it_is_right():
    found = verdicts(Implementation(fold=written.listing_fold, loss=written.listing_loss))
    assert [error for error, verdict in found.items() if verdict == "wrong"] == [3]
    assert {error for error, verdict in found.items() if verdict == "right"} == {1, 2, 4, 5, 7}


@pytest.mark.parametrize(
    ("loss", "remark"),
    [
        (written.listing_loss, "a mean over places in the bag"),
        (written.soft_labels_loss, "a mean over rows with a target"),
        (written.total_probability_loss, "a mean over rows with a target"),
        (written.token_loss, "a mean over valid targets"),
    ],
)
def test_the_normalisation_is_named(loss, remark):
    (finding,) = (f for f in conform(written._core(loss)) if f.error == 4)
    assert finding.verdict == "right"
    assert finding.evidence.startswith(remark)


def test_the_evidence_is_the_index():
    _, mutant = written.MUTANTS["targets shifted by one"]
    assert "position 0 saw tokens 0, 1 and was asked for tokens 1, 2, not tokens 2, 3; 1 of 2" in wrong(mutant)[1]
    _, mutant = written.MUTANTS["targets shifted by one and then by a bag"]
    assert "token 2 skipped" in wrong(mutant)[1]
    _, mutant = written.MUTANTS["labels flattened to one-hot"]
    assert "log(V) / s" in wrong(mutant)[2]


def test_a_probe_tells_what_was_asked_of_it():
    """The weights of a loss of one's own come back out of its gradient, to the last digits."""
    torch.manual_seed(0)
    weights = torch.rand(3, 3, 4, dtype=torch.float64)
    weights[1, 2] = 0
    window = window_of(3, 3, 4)[:, : VOCAB_SIZE // 4]
    window = torch.stack([torch.randperm(VOCAB_SIZE - 1)[:16] + 1 for _ in range(3)])

    def step(model, window, bag_size):
        bags = window.unflatten(1, (-1, bag_size))
        log_p = model(inputs_embeds=model.embedding(bags[:, :-1]).mean(dim=2)).logits.log_softmax(dim=-1)
        return -(weights * log_p.gather(-1, bags[:, 1:])).sum()

    reading = read_step(step, window, 4)
    torch.testing.assert_close(reading.counts, weights.sum(-1), rtol=1e-9, atol=1e-12)
    asked = (reading.counts.unsqueeze(-1) * reading.asked).gather(-1, window.unflatten(1, (-1, 4))[:, 1:])
    torch.testing.assert_close(asked, weights, rtol=1e-9, atol=1e-12)
    saw = reading.saw.gather(-1, window.unflatten(1, (-1, 4))[:, :-1])
    torch.testing.assert_close(saw, torch.full_like(saw, 0.25))


def test_what_raises_is_told_apart_from_what_is_wrong():
    def step(model, window, bag_size):
        raise KeyError("labels")

    assert verdicts(Implementation(step=step))[1] == "raised"
    found = wrong(Implementation(step=lambda model, window, bag_size: model(window).logits))
    assert "expected a loss, one number" in found[1]
    found = wrong(Implementation(step=lambda model, window, bag_size: torch.zeros((), requires_grad=True)))
    assert "called the model's backbone 0 times" in found[1]
    found = wrong(Implementation(fold=lambda window, s: (window, window), loss=written.soft_labels_loss))
    assert "fold returned inputs [2, 8]; expected [2, latents, 2]" in found[1]


def test_nothing_to_check_is_refused():
    with pytest.raises(UserError, match="give fold and loss, or step"):
        Implementation(fold=written.listing_fold)


def test_a_probe_is_called_as_models_are():
    model = Probe(VOCAB_SIZE, bias=True, softcap=2.0)
    ids = window_of(2, 3, 1)
    parts = model.head(model.backbone(model.embedding(ids)))
    torch.testing.assert_close(model(input_ids=ids).logits, parts)
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, parts)
    early = model(input_ids=ids[:, :2]).logits
    torch.testing.assert_close(early, parts[:, :2])  # causal
