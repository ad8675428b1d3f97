"""`superpose evaluate`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from superpose.cli.options import AsJson, console, named, print_json, say_next
from superpose.errors import UserError


def evaluate(
    places: Annotated[
        list[str],
        Argument(
            metavar="RUN|HF_DIR...",
            help="Finished runs, Hugging Face directories, or models in places such as s3://bucket/model.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=PATH",
            help="Held-out text: whatever 'superpose prepare' reads, or a prepared store; repeatable. By default "
            "the text that the runs held out.",
        ),
    ] = None,
    field: Annotated[str, Option(help="The field of a record that holds its text.")] = "text",
    max_megabytes: Annotated[float, Option(min=0.001, help="How much of each text to read, from its start.")] = 1.0,
    tasks: Annotated[
        str | None,
        Option(
            metavar="NAME,NAME,...",
            help="brackets, copy, grammar, identifiers, or 'all' of these; 'paper' for the paper's eight, or any of "
            "lm-eval's.",
        ),
    ] = None,
    tasks_only: Annotated[bool, Option("--tasks-only", help="Score the tasks alone, on no text.")] = False,
    include: Annotated[
        Path | None, Option(help="A folder of your own lm-eval tasks. Functions that its YAML names are run.")
    ] = None,
    limit: Annotated[
        int | None, Option(min=1, help="At most so many questions of a task; by default 500 of superpose's own.")
    ] = None,
    latents: Annotated[
        int | None, Option(min=2, help="Tokens in a row; by default the models' context, up to 2048.")
    ] = None,
    device: Annotated[str, Option(help="Where to compute; by default on a GPU if there is one.")] = "",
    as_json: AsJson = False,
    out: Annotated[
        Path | None, Option(help="Folder for evaluation.json, summary.md and our tasks for lm-eval.")
    ] = None,
) -> None:
    """Put models side by side: next-token loss on held-out text, by document and by position, and tasks."""
    from superpose.evaluate import workflow
    from superpose.evaluate.tables import tables, verdict
    from superpose.results.progress import Display, print_results

    given = [named("--text", option, "NAME=PATH, such as news=news.jsonl") for option in text or []]
    texts = dict(given) if given or tasks_only else None
    if len(texts or ()) < len(given):
        raise UserError("--text gives a name twice; give each text a name of its own")
    wanted = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tasks_only and (given or not wanted):
        raise UserError("--tasks-only is for --tasks without --text; leave one of them out")
    # What is being done goes to the other stream, so that the figures can be piped.
    with Display(console(stderr=True)) as display:
        evaluation = workflow.evaluate(
            places, texts, wanted, field, max_megabytes, latents, limit, include, device, out, display.prepare
        )
    if as_json:
        print_json(evaluation.model_dump())
        return
    print_results(console(), tables(evaluation), verdict(evaluation))
    if out is not None:
        console().print(f"All figures: {out}/")
    say_next("generate", places[-1])
