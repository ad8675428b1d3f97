import pytest
import torch

from superpose.train import hardware
from superpose.train.hardware import matmul_peak, peak_memory
from superpose.train.recipe_file import chosen_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("faster", "expected"), [(2.5, "bfloat16"), (1.1, "float32"), (0.3, "float32")])
def test_the_precision_is_what_is_measured_to_be_faster(recipe, monkeypatch, faster, expected):
    automatic = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "auto"})})
    monkeypatch.setattr(
        hardware, "_speeds", lambda device, dtypes, *_: [faster if t == torch.bfloat16 else 1.0 for t in dtypes]
    )
    assert chosen_precision(automatic, CPU).train.precision == expected
    assert chosen_precision(recipe, CPU) is recipe


def test_a_peak_is_what_a_product_takes():
    assert 1e8 < matmul_peak(CPU, "float32") < 1e15


def test_memory_is_in_bytes():
    before = peak_memory(CPU)
    block = torch.ones(100_000_000)
    assert before + 1e8 < peak_memory(CPU) < 1e12
    del block
