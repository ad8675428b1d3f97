"""The loops of Lightning and litgpt in Fabric, as in test_loops.py, where these are installed."""

import pytest
import torch

from tests.conftest import load_example as example
from tests.integrations.test_loops import ROOT, SCHEDULE, printed, text

__all__ = ["text"]


@pytest.mark.error(n=9)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plan", [False, True])
def test_lightning(text, tmp_path, plan):
    pytest.importorskip("lightning")
    train = example("lightning_module").train
    through = train(text, SCHEDULE, tmp_path, plan, accumulate=2)
    whole = [sum(through[place : place + 2]) / 2 for place in range(0, 16, 2)]
    assert whole == pytest.approx(example("distributed_loop").train(text, SCHEDULE, plan), rel=1e-4)
    for stop in (2, 4, 6):
        begun = train(text, SCHEDULE, tmp_path, plan, accumulate=2, until=stop)
        assert begun + train(text, SCHEDULE, tmp_path, plan, accumulate=2, resume=tmp_path / "last.ckpt") == through
    torch._dynamo.reset()
    assert train(text, SCHEDULE, tmp_path, plan, backend="eager") == pytest.approx(whole, rel=1e-4)


@pytest.mark.error(n=9)
@pytest.mark.filterwarnings("ignore")
def test_litgpt_in_fabric(text, corpus, tmp_path):
    pytest.importorskip("litgpt")
    module = example("fabric_litgpt")
    train, through = module.train, {plan: module.train(text, SCHEDULE, plan) for plan in (False, True)}
    assert through[False][0] == pytest.approx(5.545, rel=0.05)
    for plan, losses in through.items():
        kept = tmp_path / f"{plan}.ckpt"
        begun = train(text, SCHEDULE, plan, checkpoint=kept, until=4)
        assert begun + train(text, SCHEDULE, plan, checkpoint=kept) == losses
    torch._dynamo.reset()
    assert train(text, SCHEDULE, accumulate=2, backend="eager") == pytest.approx(through[False], rel=1e-4)
    settings = ["--steps", "8", "--bag-size", "4", "--ratio", "0.5", "--devices", "2"]
    losses = printed(str(ROOT / "examples/fabric_litgpt.py"), str(corpus), *settings)
    assert losses == pytest.approx(through[False], rel=1e-3)
    # At bag size 1 it is the loss of litgpt's own forward pass.
    gpt = module.GPT(
        module.Config(vocab_size=256, padded_vocab_size=256, n_layer=2, n_head=2, n_embd=32, block_size=32)
    )
    window = torch.randint(256, (2, 17))
    ordinary = torch.nn.functional.cross_entropy(gpt(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    torch.testing.assert_close(module.Superposed(gpt)(window, 1), ordinary)
