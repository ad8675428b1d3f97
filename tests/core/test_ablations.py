import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from superpose.core.ablations import ablated_loss
from superpose.core.fold import IGNORE_INDEX
from superpose.core.model import SuperposedLM
from tests.conftest import make_model


def slow(logits, targets, ablation):
    """Row by row and entry by entry, in float64."""
    total = 0.0
    for row, bag in zip(logits.double(), targets.tolist(), strict=True):
        bag = [token for token in bag if token != IGNORE_INDEX]
        if not bag:
            continue
        if ablation == "bce":
            wanted = torch.tensor([float(token in bag) for token in range(len(row))]).double()
            total += F.binary_cross_entropy_with_logits(row, wanted, reduction="sum") / len(bag)
        else:
            for token in bag:
                outside = [entry for entry in range(len(row)) if entry not in bag]
                total += sum(max(0.0, float(1 - row[token] + row[entry])) for entry in outside) / len(row) / len(bag)
    return float(total)


@pytest.mark.parametrize("ablation", ["hinge", "bce"])
@given(data=st.data())
def test_it_is_what_its_definition_says(ablation, data):
    rows, size, vocabulary = (data.draw(st.integers(1, most)) for most in (4, 5, 7))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(rows, vocabulary) * 2
    targets = torch.randint(0, vocabulary, (rows, size))
    targets[torch.rand(rows, size) < 0.3] = IGNORE_INDEX
    assert float(ablated_loss(logits, targets, ablation)) == pytest.approx(
        slow(logits, targets, ablation), rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("ablation", ["hinge", "bce"])
def test_its_gradient_pulls_the_bag_up_and_the_rest_down(ablation):
    logits = torch.zeros(1, 6, requires_grad=True)
    ablated_loss(logits, torch.tensor([[1, 4, 4]]), ablation).backward()
    assert (logits.grad[0, [1, 4]] < 0).all()
    assert (logits.grad[0, [0, 2, 3, 5]] > 0).all()


@pytest.mark.parametrize("ablation", ["hinge", "bce"])
def test_recovery_is_ordinary_training(ablation):
    model = make_model("llama")
    window = torch.randint(0, 50, (2, 9))
    assert torch.equal(SuperposedLM(model, variant=ablation)(window).loss, SuperposedLM(model)(window).loss)
    bags = torch.randint(0, 50, (2, 4 * 5))
    assert SuperposedLM(model, variant=ablation)(bags, 4).loss != SuperposedLM(model)(bags, 4).loss
