"""The page of traps: its code runs as it stands and avoids them, and each trap is one."""

import math
import re
from unittest import mock

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from superpose import IGNORE_INDEX, Schedule, SuperposedLM, split_window, window_length
from superpose.data.stream import PlannedWindows
from superpose.data.windows import WindowPlan
from tests.documented import ROOT
from tests.ranks import on_ranks

LOOP, *TRAPS = re.split(r"^## ", (ROOT / "docs/traps.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def page(*titles, names=None):
    """The names of the page's loop, or those given, and of some traps, carried out one after another."""
    torch.manual_seed(0)
    texts = [next(trap for trap in TRAPS if trap.startswith(title)) for title in titles]
    texts, names = (texts, names) if names else ([LOOP, *texts], {})
    for code in re.findall(r"```python\n(.*?)```", "".join(texts), re.DOTALL):
        exec(compile(code, "traps", "exec"), names)  # our own text
    return names


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def uneven_parts(s, count=4):
    """Windows of two rows, one of which is half padding in every other part."""
    torch.manual_seed(1)
    parts = torch.randint(512, (count, 2, window_length(8, s)))
    parts[::2, 0, 4 * s :] = IGNORE_INDEX
    return parts


def whole_gradients(lm, parts, s):
    """Those of all parts in one pass, in float64."""
    lm.zero_grad()
    lm(parts.flatten(0, 1), s).loss.backward()
    return gradients(lm)


def test_every_trap_with_code_is_carried_out_below():
    below = (ROOT / "tests/test_traps.py").read_text(encoding="utf-8")
    titles = [title for call in re.findall(r"page\((.+)\)", below) for title in re.findall(r'"([^"]+)"', call)]
    for trap in TRAPS:
        assert "```python" not in trap or any(map(trap.startswith, titles)), trap.splitlines()[0]


@pytest.mark.error(n=2)
def test_the_first_loss_is_log_v_and_one_of_log_v_over_s_is_noticed():
    names = page("The first loss")
    assert names["first"] == pytest.approx(math.log(512), rel=0.05)
    names["lm"] = mock.Mock(return_value=mock.Mock(loss=torch.tensor(math.log(512) / 4)))
    with pytest.raises(AssertionError, match=r"1\.5"):
        page("The first loss", names=names)


@pytest.mark.error(n=9)
def test_windows_cut_by_hand_read_each_token_once():
    names = page("Rows as long")
    text = names["text"]
    inputs, targets = (tokens.flatten() for tokens in split_window(names["windows"], 4))
    assert torch.equal(inputs, text[: len(inputs)])
    assert torch.equal(targets, text[4 : len(targets) + 4])
    assert len(inputs) > len(text) - 2 * names["length"]


@pytest.mark.error(n=8)
def test_all_passes_of_a_step_have_its_bag_size():
    names, asked = page(), []
    names["lm"].register_forward_pre_hook(lambda module, given: asked.append(given[1]))
    page("Steps that count", names=names)
    assert asked == [4] * 6 + [1] * 14


@pytest.mark.error(n=4)
@pytest.mark.parametrize("s", [1, 4])
def test_accumulated_parts_make_the_gradients_of_the_whole_step(s):
    names = page("Accumulation")
    lm, parts = names["lm"].double(), uneven_parts(s)
    wanted = whole_gradients(lm, parts, s)
    lm.zero_grad()
    for window in parts:
        (lm(window, s).loss / len(parts)).backward()
    means = gradients(lm)
    assert not torch.allclose(means[0], wanted[0], rtol=1e-3)
    lm.zero_grad()
    names["optimizer"] = mock.Mock()  # leaves the gradients to be looked at
    names["accumulated_step"](parts, s)
    for found, expected in zip(gradients(lm), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def ddp_step(rank, group):
    names = page("Accumulation", "DDP and FSDP")
    for s in (4, 1):
        lm, parts = names["lm"].double(), uneven_parts(s)
        wanted = whole_gradients(lm, parts, s)
        lm.zero_grad()
        names["distributed_step"](DistributedDataParallel(lm), mock.Mock(), parts[2 * rank : 2 * rank + 2], s)
        for found, expected in zip(gradients(lm), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.error(n=4)
@pytest.mark.error(n=11)
def test_ranks_make_the_gradients_of_the_whole_step():
    """Parts are as unequal between the ranks as within each."""
    on_ranks(2, ddp_step)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's own compiler
@pytest.mark.error(n=11)
def test_compiled_blocks_compile_nothing_more_at_the_switch():
    compiled, compiler = [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with mock.patch("torch.compile", lambda call, **settings: compiler(call, backend=backend, **settings)):
        names = page("torch.compile")
    lm, own = names["lm"], SuperposedLM(names["model"])
    counts = []
    for s in (4, 4, 1, 1):
        window = torch.randint(512, (2, window_length(32, s)))
        loss = lm(window, s).loss
        loss.backward()
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(loss, own(window, s).loss)
        counts.append(len(compiled))
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_a_compiled_or_sharded_model_is_refused_as_the_page_says():
    names = page()
    with pytest.raises(ValueError, match="compile SuperposedLM, or the model's blocks"):
        SuperposedLM(torch.compile(names["model"], backend="eager"))


@pytest.mark.error(n=9)
def test_a_store_is_read_by_a_plan_and_a_run_goes_on_with_the_next_step(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").symlink_to(store.path, target_is_directory=True)
    names = page("Windows from a store", "Going on")
    plan, tokens = names["plan"], names["tokens"]
    assert names["store"].path.resolve() == store.path.resolve()
    assert names["rest"] == [1] * 5
    assert plan.raw_tokens() == 8 * 32 * (3 * 4 + 7)
    read = [batch["input_ids"] for batch in PlannedWindows(plan, tokens)]
    shared = [
        [batch["input_ids"] for batch in PlannedWindows(plan, tokens, rank=rank, world_size=2)] for rank in (0, 1)
    ]
    for whole, *halves in zip(read, *shared, strict=True):
        assert torch.equal(torch.cat(halves), whole)


@pytest.mark.error(n=8)
def test_a_longer_run_keeps_its_switch_and_its_windows(store):
    names = page("Extending")
    schedule, longer = names["schedule"], names["longer"]
    assert [Schedule(40, 4, 0.3).bag_size_at(step) for step in (9, 10, 11, 12)] == [4, 4, 4, 1]
    with pytest.raises(ValueError, match="switches at"):
        Schedule(40, 4, 0.3).check_same(schedule.to_dict())
    assert longer.bag_size_at(10) == 1
    tokens = store.train.tokens
    short, long = (PlannedWindows(WindowPlan(one, 8, 32, len(tokens), seed=0), tokens) for one in (schedule, longer))
    for _ in range(10):
        assert torch.equal(short.read()["input_ids"], long.read()["input_ids"])
    long.load_state_dict(short.state_dict())
    assert long.position == 10


@pytest.mark.error(n=7)
def test_validation_is_of_single_tokens():
    names = page("Validation")
    torch.testing.assert_close(names["val_loss"], names["own"])
    assert names["name"] == "loss"


@pytest.mark.error(n=5)
def test_padding_is_neither_read_nor_asked_for_and_a_prompt_is_read():
    names = page("Padding")
    lm, window, mask = names["lm"], names["window"], names["target_mask"]
    with torch.no_grad():
        torch.testing.assert_close(lm(window[:, :-12], 4, target_mask=mask[:, :-12]).loss, names["loss"])
        other = window.clone()
        other[:, 0] = (other[:, 0] + 1) % 512
        assert not torch.allclose(lm(other, 4, target_mask=mask).loss, names["loss"])  # the prompt is read
    targets = split_window(window, 4, "full", mask)[1]
    assert (targets[:, :4] == IGNORE_INDEX).all()
    assert (targets[:, 4:-3] != IGNORE_INDEX).all()
