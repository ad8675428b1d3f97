"""Runs that were logged elsewhere: read from every form, and compared as our own are."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from superpose import cli
from superpose.compare.logged import Logged, _difference, compare_logs
from superpose.compare.logs import Curve, read_arms, read_curves
from superpose.errors import UserError
from superpose.report.page import write_report

POINTS = [(0, 8.0), (10, 4.5), (20, 3.25), (30, 3.0)]


def as_csv(file):
    file.write_text("step,val_loss,lr\n" + "".join(f"{x},{y},\n{x + 1},,0.1\n" for x, y in POINTS))


def as_json_lines(file):
    lines = [{"step": x, "val": {"loss": y}} for x, y in POINTS] + [{"step": 5, "lr": 0.1}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")


def as_trainer_state(file):
    file.write_text(json.dumps({"log_history": [{"step": x, "eval_loss": y} for x, y in POINTS] + [{"step": 1}]}))


def as_wandb(file):
    header = '"Step","one seed3 - val_loss","one seed3 - val_loss__MIN","two - val_loss"\n'
    file.write_text(header + "".join(f'"{x}","{y}","{y}","{y + 1}"\n' for x, y in POINTS))


def as_tensorboard(file):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(file) as writer:
        for x, y in POINTS:
            writer.add_scalar("val_loss", y, x)
            writer.add_scalar("tokens", 100 * x, x)


@pytest.mark.parametrize(
    ("write", "name", "metric"),
    [
        (as_csv, "a.CSV", "val_loss"),
        (as_json_lines, "a.jsonl", "val.loss"),
        (as_trainer_state, "trainer_state.json", "eval_loss"),
        (as_wandb, "export.csv", "val_loss"),
        (as_tensorboard, "events", "val_loss"),
    ],
    ids=["csv", "json lines", "trainer", "wandb", "tensorboard"],
)
def test_every_form_is_read(tmp_path, write, name, metric):
    write(tmp_path / name)
    curve = read_curves(tmp_path / name, metric)[0]
    assert curve.points == tuple(POINTS[1:])  # the untrained model has no place on an axis of logarithms
    assert curve.seed == (3 if write is as_wandb else None)


def test_tensorboards_values_over_another_tag(tmp_path):
    as_tensorboard(tmp_path / "events")
    assert read_curves(tmp_path / "events", "val_loss", "tokens")[0].points[-1] == (3000.0, 3.0)


def test_a_file_of_several_runs_is_taken_apart(tmp_path):
    as_wandb(tmp_path / "export.csv")
    one, two = read_curves(tmp_path / "export.csv", "val_loss")
    assert [y for _, y in two.points] == [y + 1 for _, y in one.points]
    rows = [{"seed": seed, "step": x, "val_loss": y + seed} for x, y in POINTS for seed in (1, 2)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    curves = read_curves(tmp_path / "all.jsonl", "val_loss")
    assert [(curve.seed, curve.points[-1]) for curve in curves] == [(1, (30.0, 4.0)), (2, (30.0, 5.0))]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "step,loss\n1,2\n", "holds no val_loss; name one of step, loss with --metric"),
        ("a.csv", "tokens,val_loss\n1,2\n", "holds no steps; name one of tokens, val_loss with --x"),
        ("a.csv", "step,val_loss\n1,2\n3,nan\n", "val_loss is nan at 3; leave out a run that diverged"),
        ("a.csv", "step,val_loss\n1,two\n", "val_loss is 'two' at step '1'; give numbers"),
        ("a.csv", "step,val_loss\n0,9\n", "holds no val_loss after the start"),
        ("a.csv", "step,val_loss\n1,\xff\n", "cannot be read as a table"),
        ("a.jsonl", "{", "is not JSON lines"),
        ("a.jsonl", "[1]", "holds no records"),
        ("a.json", "{}", "holds no records"),
        ("a.csv", "step,val_loss\n1,2\n", "has one value of val_loss"),
    ],
    ids=["metric", "x", "nan", "words", "start", "bytes", "half", "list", "object", "point"],
)
def test_what_a_file_lacks_is_named(tmp_path, name, text, says):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    (tmp_path / "b.csv").write_text("step,val_loss\n1,2\n2,1\n")
    arms = [f"ordinary={tmp_path / name}", f"tst={tmp_path / 'b.csv'}"]
    with pytest.raises(UserError, match=says):
        compare_logs(arms, "val_loss", runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_arms_that_cannot_be_compared(tmp_path):
    for name in ("seed1.csv", "seed1-again.csv"):
        (tmp_path / name).write_text("step,val_loss\n1,2\n2,1\n")
    one = f"a={tmp_path / 'seed1.csv'}"
    for arms, says in {
        (one,): "one arm cannot be compared",
        (one, "b"): "expected NAME=FILES",
        (one, f"b={tmp_path}/no*"): "there is no such file",
        (one, f"b={tmp_path}/seed1*.csv"): "two runs of the same length have seed 1",
    }.items():
        with pytest.raises(UserError, match=says):
            read_arms(arms, "val_loss")


def write_runs(tmp_path, arm, seeds, gain, name="{arm}-seed{seed}.csv", steps=3000, noise=0.002):
    for seed in seeds:
        base, own = random.Random(seed).gauss(0, 0.03), random.Random(f"{arm}{seed}")
        rows = [
            (x, 3 + 5 * math.exp(-x / 400) + 300 / x + base + gain + own.gauss(0, noise))
            for x in range(100, steps + 1, 100)
        ]
        text = "step,val_loss\n" + "".join(f"{x},{y}\n" for x, y in rows)
        (tmp_path / name.format(arm=arm, seed=seed)).write_text(text)
    return f"{arm}={tmp_path}/{arm}-*.csv"


def test_pairs_find_what_the_seeds_hide(tmp_path):
    """Seeds differ by 0.03, arms by 0.01: seed by seed it shows, and without the seeds' numbers it does not."""
    arms = [write_runs(tmp_path, arm, range(1, 6), gain) for arm, gain in (("ordinary", 0), ("tst", -0.01))]
    logged = compare_logs(arms, "val_loss", runs=tmp_path / "runs")
    difference = logged.differences["tst"]
    assert difference.paired
    assert difference.high < 0
    assert logged.verdict().startswith("Real: val_loss of tst is 0.0")
    assert "5 pairs of a seed" in logged.verdict()
    lettered = [
        write_runs(tmp_path, f"{arm}2", range(1, 6), gain, "{arm}-{seed}.csv") for arm, gain in (("o", 0), ("t", -0.01))
    ]
    apart = compare_logs(lettered, "val_loss", runs=tmp_path / "runs", name="apart")
    assert not apart.differences["t2"].paired
    assert apart.verdict().startswith("Undecided: ")
    deviation, freedom = apart.noise
    assert freedom == 8
    assert 0.01 < deviation < 0.06


def test_it_is_written_read_back_and_reported(tmp_path):
    arms = [write_runs(tmp_path, arm, (1, 2), gain) for arm, gain in (("ordinary", 0), ("tst", 0.1), ("other", 0))]
    logged = compare_logs(arms, "val_loss", runs=tmp_path / "runs")
    assert Logged.load(tmp_path / "runs" / "logs") == logged
    answers = json.loads((tmp_path / "runs" / "logs" / "logged.json").read_text())["answers"]
    assert answers["tst"]["speedup"]["ratio"] == logged.speedups["tst"].ratio < 1
    pages = write_report([tmp_path / "runs" / "logs"], tmp_path / "report.html")
    assert "2 arms were tried; intervals and p are corrected for that." in pages[1].read_text()
    (tmp_path / "runs" / "logs" / "logged.json").write_text("{}")
    with pytest.raises(UserError, match="was altered"):
        Logged.load(tmp_path / "runs" / "logs")


def test_a_chart_of_logs_shows_where_every_arm_ends_and_says_what_is_above_it():
    points = tuple((float(place), 9.0 / place) for place in range(1, 101))
    worse = tuple((place, value + 5.0 * (place == 100)) for place, value in points)
    chart = Logged("loss", "tokens", {"one": (Curve("a", 1, points),), "other": (Curve("b", 1, worse),)}).chart()
    assert all(one.y[-1] < chart.y_range[1] for one in chart.series)
    assert "Each line is a run." in chart.caption
    assert "Above the picture: one at tokens 1 (highest 9); other at tokens 1 (highest 9)." in chart.caption


def test_runs_that_end_at_several_lengths_are_the_curve(tmp_path):
    """The first arm's own ends, not its curves on the way, say what its budget has to be."""
    for steps in (1000, 2000, 4000):
        write_runs(tmp_path, "ordinary", (1, 2), -steps / 1e5, f"{{arm}}-{steps}-seed{{seed}}.csv", steps, noise=0)
    write_runs(tmp_path, "tst", (1, 2), -0.03, steps=1000, noise=0)
    logged = compare_logs([f"{arm}={tmp_path}/{arm}-*.csv" for arm in ("ordinary", "tst")], "val_loss", runs=tmp_path)
    assert [place for place, _ in logged.speedups["tst"].curve] == [1000, 2000, 4000]
    assert not any("read off the curves" in note for note in logged.cautions())


def test_the_shortest_arm_says_where_values_are_compared(tmp_path):
    curves = {"a": (Curve("a", None, ((100, 4.0), (400, 2.0))),), "b": (Curve("b", None, ((100, 3.0), (200, 2.5))),)}
    logged = Logged("loss", "step", curves)
    assert logged.at == 200
    assert logged.values("a")[0][1] == pytest.approx(3.0)  # half-way in the logarithm
    assert "is an anecdote" in logged.verdict()
    assert "Not all arms end at step 200" in logged.verdict()


losses = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


@given(losses, losses)
def test_runs_without_seeds_are_compared_by_welchs_test(first, other):
    if np.ptp(first) < 1e-6 or np.ptp(other) < 1e-6:
        return
    ours = _difference([(None, value) for value in first], [(None, value) for value in other], 1)
    theirs = stats.ttest_ind(other, first, equal_var=False)
    interval = theirs.confidence_interval()
    assert [ours.low, ours.high, ours.p] == pytest.approx(
        [interval.low, interval.high, theirs.pvalue], rel=1e-6, abs=1e-9
    )


def test_an_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        first, other = draws.normal(0, 1, 4), draws.normal(0.5, 2, 5)
        found = _difference([(None, value) for value in first], [(None, value) for value in other], 1)
        held += found.low <= 0.5 <= found.high
    assert 0.93 <= held / 600 <= 0.99


def test_an_option_of_training_is_refused_by_its_name():
    result = CliRunner().invoke(cli.app, ["compare", "--logs", "a=a.csv", "b=b.csv", "--set", "train.lr=1"])
    assert str(result.exception) == "--set: with --logs nothing is trained; leave it out"
