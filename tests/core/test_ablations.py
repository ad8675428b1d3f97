import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from superpose import IGNORE_INDEX, SuperposedLM, SuperposedParts
from superpose.core.ablations import ablated_loss
from tests.conftest import make_model
from tests.core.test_loss import V, bags, reference


def slow(logits, targets, variant):
    """Position by position and entry by entry, in float64."""
    total = 0.0
    for z, bag in zip(logits.double(), targets.tolist(), strict=True):
        bag = [token for token in bag if token != IGNORE_INDEX]
        if not bag:
            continue
        if variant == "bce":
            wanted = torch.tensor([float(token in bag) for token in range(len(z))]).double()
            total += F.binary_cross_entropy_with_logits(z, wanted, reduction="sum") / len(bag)
        else:
            for token in bag:
                outside = [entry for entry in range(len(z)) if entry not in bag]
                total += sum(max(0.0, float(1 - z[token] + z[entry])) for entry in outside) / len(z) / len(bag)
    return float(total)


@pytest.mark.parametrize("variant", ["hinge", "bce"])
@given(data=st.data())
def test_it_is_what_its_definition_says(variant, data):
    positions, size, vocabulary = (data.draw(st.integers(1, most)) for most in (4, 5, 7))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(positions, vocabulary) * 2
    targets = torch.randint(0, vocabulary, (positions, size))
    targets[torch.rand(positions, size) < 0.3] = IGNORE_INDEX
    assert float(ablated_loss(logits, targets, variant)) == pytest.approx(
        slow(logits, targets, variant), rel=1e-4, abs=1e-5
    )


@pytest.mark.error(n=4)
@given(bags(), st.sampled_from([0.0, 0.1]))
def test_the_bags_total_probability_equals_the_formula(bag, z_loss):
    targets, weights = bag
    logits = torch.randn(len(targets), V, dtype=torch.float64, requires_grad=True)
    expected = reference(logits, targets, weights, z_loss, variant="mce_alt")[0].sum()
    loss = ablated_loss(logits, targets, "mce_alt", weights, z_loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


@pytest.mark.error(n=2)
@pytest.mark.parametrize("bag_size", [1, 4, 16])
def test_the_bags_total_probability_is_on_the_scale_of_the_loss(bag_size):
    """log V at initialisation, the same as MCE for a bag of one token, -log of the total but for log S."""
    logits, targets = torch.randn(8, 1000), torch.stack([torch.randperm(1000)[:bag_size] for _ in range(8)])
    at_start = ablated_loss(torch.zeros(8, 1000), targets, "mce_alt") / 8
    assert at_start.item() == pytest.approx(math.log(1000), rel=1e-5)
    total = logits.softmax(-1).gather(1, targets).sum(1)
    loss = ablated_loss(logits, targets, "mce_alt")
    torch.testing.assert_close(loss, (math.log(bag_size) - total.log()).sum())


@pytest.mark.error(n=4)
@pytest.mark.parametrize("variant", ["mce_alt", "hinge", "bce"])
def test_a_batch_without_a_target_is_zero_not_nan(variant):
    logits = torch.randn(4, V, requires_grad=True)
    value = ablated_loss(logits, torch.full((4, 3), IGNORE_INDEX), variant, z_loss=1.0)
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    targets = torch.tensor([[0, 0, 5], [1, IGNORE_INDEX, 2], [IGNORE_INDEX] * 3, [6, 3, 4]])
    weights = torch.tensor([0.5, 0.3, 0.2])
    logits = torch.randn(4, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ablated_loss(z, targets, "mce_alt", weights, 0.1), logits)


@pytest.mark.parametrize("variant", ["mce_alt", "hinge", "bce"])
def test_its_gradient_pulls_the_bag_up_and_the_rest_down(variant):
    logits = torch.zeros(1, 6, requires_grad=True)
    ablated_loss(logits, torch.tensor([[1, 4, 4]]), variant).backward()
    assert (logits.grad[0, [1, 4]] < 0).all()
    assert (logits.grad[0, [0, 2, 3, 5]] > 0).all()


@pytest.mark.parametrize("variant", ["mce_alt", "hinge", "bce"])
def test_recovery_is_ordinary_training(variant):
    model = make_model("llama")
    window = torch.randint(0, 50, (2, 9))
    assert torch.equal(SuperposedLM(model, variant=variant)(window).loss, SuperposedLM(model)(window).loss)
    bags = torch.randint(0, 50, (2, 4 * 5))
    assert SuperposedLM(model, variant=variant)(bags, 4).loss != SuperposedLM(model)(bags, 4).loss


@pytest.mark.parametrize("variant", ["hinge", "bce"])
def test_settings_that_a_variant_would_ignore_are_refused(variant):
    model = make_model("llama")
    with pytest.raises(ValueError, match="leave weighting at 'uniform'"):
        SuperposedLM(model, "power", variant)
    with pytest.raises(ValueError, match="variant is 'mcealt'; choose one of mce, mce_alt, hinge, bce"):
        SuperposedParts(model.model.embed_tokens, model.model, model.lm_head, variant="mcealt")
