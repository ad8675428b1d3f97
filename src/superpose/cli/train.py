"""`superpose train`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from superpose.cli.options import (
    A_RECIPE,
    BagSize,
    Corpus,
    Overrides,
    Rate,
    Ratio,
    Stages,
    Steps,
    console,
    load_settings,
    prepared_store,
    say_next,
)


def train(
    recipe: Annotated[Path, Argument(help=f"{A_RECIPE}, or the config.json of a run.")],
    out: Annotated[Path, Option(help="Directory of the run.")],
    corpus: Corpus = None,
    steps: Steps = None,
    bag_size: BagSize = None,
    ratio: Ratio = None,
    stages: Stages = None,
    lr: Rate = None,
    resume: Annotated[
        bool,
        Option(
            "--resume",
            help="Go on from the newest good checkpoint in --out, to the same bits; start if there is none.",
        ),
    ] = False,
    baseline: Annotated[Path | None, Option(help="Directory of an ordinary run: say when this run passes it.")] = None,
    profile: Annotated[bool, Option("--profile", help="Write profiler traces of a few steps of each phase.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train one model from a recipe and write it as a Hugging Face directory.

    On several devices: torchrun --nproc-per-node N -m superpose train ...
    """
    import os

    from superpose.plan.short_runs import too_short
    from superpose.results.progress import Display, summarize
    from superpose.train.forecast import forecast
    from superpose.train.loop import announce, check_device
    from superpose.train.loop import train as train_run
    from superpose.train.records import Pace
    from superpose.train.running import StoppedError

    # Of the ranks torchrun starts, the first speaks for all.
    terminal = console(quiet=os.environ.get("RANK", "0") != "0")
    settings = load_settings(
        recipe, overrides, corpus=corpus, steps=steps, bag_size=bag_size, ratio=ratio, stages=stages, lr=lr
    )
    check_device(settings.train.device)
    with Display(terminal) as display:
        store = prepared_store(settings, display)
        terminal.print(announce(settings, store))
        if few := too_short(settings, settings.train.steps):
            display.say(few, style="yellow")

        def told(record: dict[str, Any]) -> None:
            if resume and record["kind"] == "start":
                terminal.print(record["message"])
            if record["kind"] == "pace":
                terminal.print(forecast(settings, Pace.heard(record)))
            display.record(out.name, settings.train.steps, record)

        try:
            result = train_run(settings, store, out, resume, told, baseline, profile)
        except StoppedError as stopped:
            terminal.print(f"{stopped}; the same command{'' if resume else ' with --resume'} goes on")
            raise typer.Exit(stopped.exit_code) from None
    terminal.print("\n".join(summarize(result)))
    if terminal.quiet:
        return
    if result["ends_in_superposition"]:
        terminal.print("It ended inside superposition, so it has no model to export: it predicts bags, not text.")
        say_next("runs", "show", out)
    else:
        terminal.print(f"model: {out / 'model'}")
        say_next("evaluate", *([baseline] if baseline else []), out)
