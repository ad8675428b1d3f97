import json
import re
import shutil
from contextlib import suppress
from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.compare.logged import Logged
from superpose.compare.logs import Curve
from superpose.errors import UserError
from superpose.report.page import page, write_report
from superpose.report.samples import Samples
from superpose.report.sections import Section, read_sections
from superpose.reproduce.experiments import EXPERIMENTS
from superpose.reproduce.reproduction import experiment_runs, reproduction, save
from tests.reproduce.test_reproduction import outcomes

HOSTILE = "<img src=x onerror=alert(1)></script><b>$x$ | `y` [z](w)"


@pytest.fixture(scope="module")
def reproduced(recipe, store, tmp_path_factory):
    """Two experiments with made-up losses: a sweep, and the corpus' own weights."""
    from superpose.data.information import PowerLaw

    directory = tmp_path_factory.mktemp("reproduced")
    law = PowerLaw(0.5, 1.0, -1.0, -1.1, -0.9, {distance: 0.5 + 1 / distance for distance in range(1, 33)})
    done = []
    for name in ("figure4", "appendixC"):
        runs, _ = experiment_runs(EXPERIMENTS[name], recipe, store, (1, 2), {})
        losses = outcomes(runs, lambda arm, seed: 3 + len(arm) / 100 + seed / 50)
        done.append(reproduction(name, "tiny", recipe, store, losses, law if name == "appendixC" else None, {}))
    save(done, "superpose reproduce", directory)
    return directory


def test_a_report_of_everything(compared, reproduced, tmp_path):
    directory, comparison = compared
    run = directory / "tst-20-seed1"
    places = [directory, reproduced, run, directory / "ordinary-20-seed1"]
    written, text, *pictures = write_report(places, tmp_path / "r.html")
    html = written.read_text()
    bare = re.sub("</?button[^>]*>", "", html)
    assert escape(comparison.verdict().split(". ")[0]) in bare
    assert "reads bags for the first part of training" in bare
    assert "http-equiv" in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html.split("<script>")[0])  # nothing is loaded
    markdown = text.read_text()
    for words in (
        "## named",
        "2.20 x",
        "appendixC",
        "rank correlation",
        "tst-20-seed1",
        "single runs are no comparison",
        "- **nats**: ",
        "the text itself:\n\n    ",
    ):
        assert words in markdown
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"]({picture.name})" in markdown
    assert len(pictures) == sum(len(section.charts) for section in read_sections(places))
    assert "<mark>" in html


def test_a_single_run(compared, tmp_path):
    directory, _ = compared
    (section,) = read_sections([directory / "tst-20-seed1"])
    assert "ended at a validation loss of" in section.verdict
    assert section.charts[0].series[0].x["step"] == [0.0, 8.0, 10.0, 20.0]
    for chart in section.charts:
        assert [(places["step"], label) for places, label in chart.marks] == [(8.0, "recovery begins")]


def test_runs_beside_each_other_say_whose_switch_is_marked(compared, run):
    directory, _ = compared
    (section,) = read_sections([directory / "tst-20-seed1", directory / "ordinary-20-seed1", run])
    ((_, label),) = section.charts[0].marks
    assert label == "tst-20-seed1, one: recovery begins"


def test_what_models_write_stays_text(tmp_path):
    samples = Samples(HOSTILE, f"{HOSTILE}\n# a heading", {HOSTILE: f"</pre>{HOSTILE}"})
    html = page([Section("title", "verdict", [], [], [], samples)], HOSTILE)
    assert "<img" not in html.split("<script>")[0]
    assert html.count("</pre>") == 1
    assert "&lt;/pre&gt;&lt;img" in html


def test_a_page_on_other_things_than_tst_does_not_explain_it(tmp_path):
    curves = tuple(Curve(name, 1, ((1.0, 3.0), (2.0, value))) for name, value in (("a", 2.0), ("b", 2.5)))
    Logged("val_loss", "step", {"small": curves[:1], "large": curves[1:]}).write(tmp_path)
    html = page(read_sections([tmp_path]), "")
    assert "What TST is" not in html


def test_what_holds_nothing_to_report_is_refused(compared, tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        read_sections([tmp_path])
    directory, _ = compared
    saved = json.loads((directory / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps(saved | {"runs": []}))
    with pytest.raises(UserError, match="no seed"):
        read_sections([tmp_path])


def test_strings_from_outside_stay_text(compared, tmp_path):
    directory, _ = compared
    run = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(directory / "tst-20-seed1", run)
    written, text, *_ = write_report([run], tmp_path / "report.html")
    html = written.read_text()
    assert "<img" not in html.split("<script>")[0]
    assert "\\u003cimg" not in html  # in labels, plotly would read it: escaped as HTML before it is data
    assert "&lt;img" in html
    assert "\\u0026lt;img" in html
    markdown = text.read_text()
    assert "<img" not in markdown.replace("\\<img", "")
    assert "[z](w)" not in markdown


def leaves(value, path=()):
    """Places of all values in JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def altered(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = altered(value[path[0]], path[1:], new)
    return copy


JUNK = st.sampled_from(
    [None, -1, 0, 1e400, 10**400, float("nan"), "", "x", HOSTILE, [], {}, [1], {"a": 1}, True, "../../.."]
)


@pytest.mark.parametrize("name", ["comparison.json", "reproduction.json", "metrics.jsonl", "result.json"])
def test_altered_files_are_a_page_or_one_sentence(compared, reproduced, tmp_path_factory, name):
    """Whatever stands at whatever place of a file: a page, or a UserError, and nothing else."""
    sources = {"comparison.json": compared[0], "reproduction.json": reproduced}
    source = sources.get(name, compared[0] / "tst-20-seed1")
    lines = [json.loads(line) for line in (source / name).read_text().splitlines()] if name[-1] == "l" else None
    saved = lines or json.loads((source / name).read_text())
    folder = tmp_path_factory.mktemp("altered")
    for path in source.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)

    @given(st.sampled_from(list(leaves(saved))[1:]), JUNK)
    def check(place, junk):
        new = altered(saved, place, junk)
        text = "\n".join(map(json.dumps, new)) if lines else json.dumps(new)
        (folder / name).write_text(text)
        with suppress(UserError):
            assert "<img" not in page(read_sections([folder]), "fuzzed").split("<script>")[0]

    check()


def test_half_a_character_in_a_plan_is_spelled(tmp_path):
    plan = {"format": "superpose plan 1", "summary": "go", "tables": [], "request": {"device": "\ud800"}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    write_report([tmp_path], tmp_path / "page.html")
    assert "ud800" in (tmp_path / "page.html").read_text(encoding="utf-8")
