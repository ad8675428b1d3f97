import json
import shutil

import pytest

from superpose.errors import UserError
from superpose.runs.disk import open_run
from superpose.runs.tables import differences


def record(step, flops, loss):
    spent = {"raw_tokens": step, "latents": step, "seconds": 1.0 * step}
    return {"kind": "validation", "step": step, "flops": flops, "val_loss": loss, "val_bits_per_byte": loss, **spent}


@pytest.fixture
def make(run, tmp_path):
    """A run of these (step, FLOPs, loss) with some settings changed."""

    def call(name, points, **settings):
        path = shutil.copytree(run, tmp_path / name)
        (path / "metrics.jsonl").write_text("".join(json.dumps(record(*point)) + "\n" for point in points))
        recipe = json.loads((path / "config.json").read_text())
        for place, value in settings.items():
            section, setting = place.split("__")
            recipe[section][setting] = value
        (path / "config.json").write_text(json.dumps(recipe))
        return open_run(path)

    return call


def test_settings_that_differ(make, run):
    config = json.loads((run / "config.json").read_text())["model"]["config"]
    left = make("left", [], train__lr=1e-3)
    right = make("right", [], superposition__ratio=0.2, model__config={**config, "num_hidden_layers": 2})
    found = differences([left, right])
    assert found.settings == {
        "model.config.num_hidden_layers": (1, 2),
        "superposition.ratio": (0.4, 0.2),
        "train.lr": (1e-3, 2e-3),
    }
    assert found.at_steps == found.at_flops == {}
    assert len(found.remarks()) == 2
    assert [title for title, _, _ in found.tables()] == ["Settings that differ"]


def test_losses_at_equal_steps_and_at_equal_flops(make):
    """The second run's steps cost twice as much: at equal FLOPs it is read at half the steps, in log FLOPs."""
    cheap = make("cheap", [(0, 0, 9.0), (10, 100.0, 8.0), (20, 200.0, 7.0), (40, 400.0, 6.0)])
    dear = make("dear", [(0, 0, 9.0), (10, 200.0, 5.0), (30, 600.0, 3.0), (40, 800.0, 1.0)])
    found = differences([cheap, dear])
    assert found.at_steps == {0: (9.0, 9.0), 10: (8.0, 5.0), 40: (6.0, 1.0)}
    assert list(found.at_flops) == [200.0, 400.0]
    assert found.at_flops[200.0] == (7.0, 5.0)
    assert found.at_flops[400.0] == pytest.approx((6.0, 5.0 - 2.0 * 0.6309), abs=1e-3)  # log(2) / log(3)
    assert found.same_text
    assert found.remarks() == ["All settings are the same."]
    assert found.tables()[1][2][-1] == ("4.000e+02", "6.0000", "3.7381")
    # Whichever is named first.
    assert differences([dear, cheap]).at_flops == {spent: losses[::-1] for spent, losses in found.at_flops.items()}


def test_other_text_is_said(make):
    left, right = make("left", [(1, 1.0, 1.0)]), make("right", [(1, 1.0, 1.0)])
    (right.path / "store.json").write_text('{"fingerprint": "other", "path": "x"}')
    found = differences([left, right])
    assert not found.same_text
    assert any("different tokens" in remark for remark in found.remarks())


def test_one_run_is_no_comparison(run, tmp_path):
    (tmp_path / "same").symlink_to(run, target_is_directory=True)
    for runs in ([run], [run, run], [run, tmp_path / "same"]):
        with pytest.raises(UserError, match="two runs or more"):
            differences([open_run(path) for path in runs])
