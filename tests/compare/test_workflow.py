import re
from dataclasses import replace

from superpose.compare.comparison import Comparison
from superpose.compare.experiment import Design
from superpose.compare.workflow import _Page
from superpose.results.tables import markdown
from superpose.runs.pool import Run


def test_the_summary_grows_as_runs_finish_and_leaves_comparison_json_alone(compared, recipe, store, tmp_path):
    _, comparison = compared
    main = [run for run in comparison.runs if run.steps == comparison.steps and run.arm in ("ordinary", "tst")]
    recipes = {"ordinary": recipe.ordinary(), "tst": recipe}
    planned = [
        Run(one.arm, replaced.model_copy(update={"train": replaced.train.model_copy(update={"seed": one.seed})}))
        for one in main
        for replaced in [recipes[one.arm]]
    ]
    so_far = "2 of 4 runs done, 0 failed, about 3 min left"
    page = _Page(Design(recipe, (1, 2)), planned, {}, store, tmp_path / "pool", tmp_path / "named", lambda: so_far)
    told = sorted(zip(planned, main, strict=True), key=lambda pair: pair[0].seed)
    page.hear(told[0][0], {"kind": "result", "result": told[0][1].result})
    assert not (tmp_path / "named").exists()  # one arm alone is no comparison
    page.hear(told[1][0], {"kind": "result", "result": told[1][1].result})
    first, _, rest = (tmp_path / "named/summary.md").read_text().partition("\n\n")
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d: {so_far}; this is of those that are done\.", first)
    kept = tuple(replace(one, lr=run.recipe.train.lr, directory=tmp_path) for run, one in told[:2])
    assert rest == markdown((of := Comparison(recipe, kept, {}, store.facts)).tables(), of.verdict())
    page.hear(told[2][0], {"kind": "failure", "message": "died"})  # too soon after the last
    assert (tmp_path / "named/summary.md").read_text().startswith(first)
    assert [path.name for path in (tmp_path / "named").iterdir()] == ["summary.md"]
