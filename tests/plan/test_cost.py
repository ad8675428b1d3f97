import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose import IGNORE_INDEX, Schedule, StageArgs, split_window
from superpose.data.sources import sources_of
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan
from superpose.errors import UserError
from superpose.plan.advisor import make_plan
from superpose.plan.cost import OVERHEAD, Calibration, calibrate, cost_of
from superpose.plan.fit import request_for, request_of
from superpose.plan.model import KNOWN_SHAPES, Shape, facts
from superpose.plan.request import NAMES, PUBLIC_RUNS, Price, Request, parse_hardware, usual_utilisation


def costs(schedule, latents_per_step, flops_per_latent, step_seconds=None, **request):
    request = Request(None, latents_per_step, request.pop("rows", 1), schedule.total_steps, **request)
    return cost_of(request, schedule, flops_per_latent, step_seconds)


@given(st.integers(10, 5000), st.integers(1, 16), st.sampled_from([0.1, 0.25, 0.3, 0.5]))
def test_a_run_reads_what_its_phases_read(steps, bag_size, ratio):
    cost = costs(Schedule(steps, bag_size, ratio), 512, 1000, unique_tokens=1e6)
    assert sum(phase.raw_tokens for phase in cost.phases) == cost.raw_tokens
    assert cost.latents == cost.ordinary_tokens == 512 * steps
    boundary = math.floor(steps * ratio + 0.5)
    assert cost.raw_tokens == 512 * (steps + boundary * (bag_size - 1))
    assert cost.flops == 512_000 * steps
    assert cost.epochs == cost.raw_tokens / 1e6
    assert cost.hours is None


def test_extra_heads_cost_their_flops_while_their_stage_lasts():
    stages = [StageArgs(0.2, bag_size=4, extra_heads=2), StageArgs(0.3, bag_size=2, extra_heads=1)]
    request, schedule = Request(None, 512, 1, 100), Schedule(100, stages=stages)
    assert cost_of(request, schedule, 1000, flops_per_head=300).flops == 512 * (100 * 1000 + (20 * 2 + 30) * 300)


@pytest.mark.parametrize("bag_size", [4, {4: 1, 2: 1}])
def test_passes_over_each_source_are_those_that_a_run_reads(bag_size):
    """Counted token by token in the windows of all steps: those below 100 are of one source, the others of another."""
    lengths = np.array([7, 30, 11, 25, 14, 9] * 20)
    origins, offsets = np.arange(120) % 3 % 2, np.concatenate([[0], np.cumsum(lengths)])
    text = TokenArray([np.repeat(np.where(origins == 0, 50, 150), lengths)], ["text"], 151)
    sources = sources_of(("web", "code"), origins, offsets, (1, 1))
    bags = StageArgs(0.4, bag_size=bag_size, ordinary_rows=0.25, mixture={"web": 1.0})
    schedule = Schedule(40, stages=[bags, StageArgs(0.3, mixture={"web": 0.25, "code": 0.75})], seed=2)
    run, read = WindowPlan(schedule, 4, 8, len(text), 5, sources=sources), Counter()
    for step in range(40):
        computed = schedule.step_at(step)
        inputs, _ = split_window(run.read(text, step), computed.bag_size)
        read.update(inputs[inputs != IGNORE_INDEX].tolist())
    tokens = {name: source.num_tokens for name, source in sources.items()}
    cost = costs(schedule, 8, 1000, rows=4, unique_tokens=len(text), sources=tokens)
    assert cost.source_epochs == {"web": read[50] / tokens["web"], "code": read[150] / tokens["code"]}
    assert read.total() == cost.raw_tokens
    assert costs(Schedule(40, 4, 0.3), 8, 1000, sources=tokens).source_epochs == {}


def test_hours_money_energy_and_co2():
    hardware = parse_hardware("4xA100")
    cost = costs(Schedule(100), 1000, 312e9, hardware=hardware, price_per_hour=Price(2.0, "EUR"), co2_grams=100)
    low, high = usual_utilisation("A100")
    assert low < high
    for hours, utilisation, price, kwh, kg in zip(
        cost.hours, (high, low), cost.price, cost.kwh, cost.kg_co2, strict=True
    ):
        assert hours == pytest.approx(100 * 1000 * 312e9 / (4 * 312e12 * utilisation) / 3600)
        assert price == pytest.approx(hours * 4 * 2)
        assert kwh == pytest.approx(hours * 4 * 0.4 * OVERHEAD)
        assert kg == pytest.approx(kwh * 0.1)
    given = costs(Schedule(100), 1000, 312e9, hardware=hardware, utilisation=0.4)
    assert given.hours[0] == given.hours[1] == pytest.approx(100 * 1000 * 312e9 / (4 * 312e12 * 0.4) / 3600)


def test_measured_steps_take_the_place_of_a_utilisation():
    hardware = parse_hardware("A100")
    cost = costs(Schedule(3600), 1000, 312e9, 2.0, hardware=hardware)
    assert cost.hours == pytest.approx((2, 2))
    assert cost.utilisation == pytest.approx((0.5, 0.5))


SMOL_70M = Shape(384, 1024, 32, 6, 2, 49_152, True)
GPT2 = KNOWN_SHAPES["GPT-2 124M, with a gated MLP"][1]


@pytest.mark.parametrize(
    ("name", "shape", "latents", "tokens", "device_hours"),
    [
        ("Llama 3 8B", KNOWN_SHAPES["Llama 3 8B"][1], 8192, 15e12, 1.3e6),
        ("nanoGPT 124M", GPT2, 1024, 294.9e9, 8 * 96),
        ("llm.c GPT-2 124M", GPT2, 1024, 10e9, 12),
        ("SmolLM2-70M", SMOL_70M, 8192, 10.2e9, 25.82),
    ],
)
def test_the_utilisation_of_public_runs_is_that_of_their_hours(name, shape, latents, tokens, device_hours):
    (run,) = (run for run in PUBLIC_RUNS if run.name == name)
    flops = facts(shape.config(latents), latents).flops * tokens
    peak = parse_hardware(run.device).device.flops
    assert flops / (device_hours * 3600 * peak) == pytest.approx(run.utilisation, abs=0.012)


@pytest.mark.parametrize(
    ("params", "tokens", "hardware", "device_hours"),
    [(8e9, 15e12, "1024xH100", 1.3e6), (124e6, 10e9, "8xA100", 12), (70e6, 10.2e9, "L40S", 25.8)],
)
def test_the_hours_of_public_runs_are_in_the_range(params, tokens, hardware, device_hours):
    request = request_for(params, tokens, hardware=parse_hardware(hardware))
    flops = facts(request.config, request.latents).flops
    cost = cost_of(request, Schedule(request.steps), flops)
    assert cost.device_hours[0] < device_hours < cost.device_hours[1]


@pytest.mark.parametrize("text", [f"8x{name}" for name in NAMES] + ["2 x h100", "b200", "cpu"])
def test_hardware_is_read(text):
    hardware = parse_hardware(text)
    assert hardware.count in (1, 2, 8)
    assert hardware.device.flops > 1e9


def test_a_device_of_ones_own():
    own = parse_hardware("8xmy-card", 400e12, 48 * 2**30)
    assert (own.count, own.device.name, own.device.flops, own.device.memory) == (8, "my-card", 400e12, 48 * 2**30)
    assert costs(Schedule(100), 1000, 1e9, hardware=own).kwh is None  # its power is not known
    assert parse_hardware("M1", memory=2**34).device.memory == 2**34
    with pytest.raises(UserError, match="--flops 400T"):
        parse_hardware("8xmy-card", memory=48 * 2**30)


@pytest.mark.parametrize("text", ["8xH900", "0xH100", "x", "", "8x", "-1xH100", "2xcpu", "9999999xH100"])
def test_hardware_that_is_not_known_is_refused(text):
    with pytest.raises(UserError, match="8xH100"):
        parse_hardware(text)


def test_both_phases_are_measured(recipe, store):
    measured = calibrate(recipe, store)
    assert set(measured.step_seconds) == set(measured.reading_seconds) == {1, 4}
    assert all(0 < measured.reading_seconds[size] < seconds < 60 for size, seconds in measured.step_seconds.items())
    assert measured.memory > 2**20
    assert measured.precision == "float32"
    plan = make_plan(request_of(recipe, parse_hardware("cpu")), calibration=measured)
    assert plan.cost.hours == pytest.approx((20 * measured.mean_step(recipe.schedule) / 3600,) * 2)


def test_the_mean_step_is_weighted_by_the_stages():
    measured = Calibration({1: 1.0, 4: 2.0}, {1: 0.1, 4: 0.1}, 0, "float32")
    assert measured.mean_step(Schedule(100, 4, 0.3)) == pytest.approx(0.3 * 2 + 0.7)
    assert measured.mean_step(Schedule(100, 5, 0.3)) == pytest.approx(0.3 * 2 + 0.7)  # the nearest
