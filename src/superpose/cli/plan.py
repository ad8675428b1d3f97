"""`superpose plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superpose.cli.options import A_RECIPE, Overrides, load_settings, prepared_store
from superpose.errors import UserError

if TYPE_CHECKING:
    from superpose.plan.advisor import Request
    from superpose.plan.response import Setting
    from superpose.train.config import Recipe

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def plan(
    recipe: Annotated[Path | None, typer.Argument(help=f"{A_RECIPE}; or give --params and --tokens.")] = None,
    params: Annotated[str | None, typer.Option(help="Parameters, such as 3B: a Llama of about that size.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Budget, such as 60B: what an ordinary run would read, and so latents.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Tokens of unique text there are, such as 100B.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Such as 8xH100, or cpu.")] = None,
    price: Annotated[str | None, typer.Option(help="Of one device an hour, such as 2.5/h.")] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Utilisation of the devices; 0.4 if not given.")
    ] = None,
    co2: Annotated[float | None, typer.Option(min=0, help="Grams a kWh; 445, the world's mean, if not given.")] = None,
    bag_size: Annotated[int | None, typer.Option(min=1, help="Tokens in a bag (s), with --ratio.")] = None,
    ratio: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the steps in superposition (r).")] = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Recommend bag size and ratio in place of the recipe's own.")
    ] = False,
    vocab_size: Annotated[int | None, typer.Option(min=2, help="With --params; Llama 3's if not given.")] = None,
    latents: Annotated[int | None, typer.Option(min=1, help="Positions of a row, with --params; 2048.")] = None,
    compared: Annotated[
        list[Path] | None, typer.Option(help="Directory of a comparison of yours, to add to the fit; repeatable.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Run a few steps of both phases here, and plan with what they took.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for plan.json, which 'superpose report' reads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Say what TST would bring, what it would cost, and whether to do it: go, a small gain, or do not."""
    # What is mistyped is said before anything heavy is loaded.
    unique, budget, size = (
        None if text is None else _amount(option, text)
        for option, text in (("--data", data), ("--tokens", tokens), ("--params", params))
    )
    hourly = None if price is None else _price(price, hardware is not None)

    import json
    from dataclasses import replace

    from rich.console import Console

    from superpose.compare.comparison import Comparison
    from superpose.files import write_json
    from superpose.plan.advisor import make_plan, summary
    from superpose.plan.calibration import calibrate as run_steps
    from superpose.plan.evidence import points_of
    from superpose.plan.hardware import parse_hardware
    from superpose.plan.model import LLAMA_3_VOCABULARY
    from superpose.plan.request import request_for, request_of
    from superpose.plan.tables import record, tables
    from superpose.results.progress import Display, print_table
    from superpose.train.config import load_recipe

    machine = parse_hardware(hardware) if hardware else None
    settings = None
    if recipe is not None:
        for option, value in (("--params", params), ("--tokens", tokens), ("--vocab-size", vocab_size),
                              ("--latents", latents)):  # fmt: skip
            if value is not None:
                raise UserError(f"{option} would be ignored: the recipe says it; change it with --set")
        # A plan is made before tokenizer and devices have to be here; steps are run with them.
        settings = load_settings(recipe, {}, None, overrides) if calibrate else load_recipe(recipe, overrides)
        request = request_of(settings, machine, unique)
    elif size is None or budget is None:
        raise UserError("give a recipe, or --params and --tokens, such as --params 3B --tokens 60B")
    else:
        if overrides:
            raise UserError("--set changes a recipe's settings; without a recipe it would be ignored")
        request = request_for(
            size,
            budget,
            LLAMA_3_VOCABULARY if vocab_size is None else vocab_size,
            2048 if latents is None else latents,
            machine,
            unique,
        )
    request = replace(
        request,
        setting=_setting(request, bag_size, ratio, recommend),
        utilisation=mfu,
        price_per_hour=hourly,
        co2_grams=request.co2_grams if co2 is None else co2,
    )
    own = [point for place in compared or [] for point in points_of(Comparison.load(place), str(place))]
    console = Console(markup=False, highlight=False, stderr=as_json)
    measured = None
    if calibrate:
        if settings is None:
            raise UserError("--calibrate runs steps of a recipe's model on its text; give a recipe that can run here")
        with Display(console) as display:
            store = prepared_store(settings, display)
        if request.setting is not None and request.setting.bag_size > 1:
            settings = _with_setting(settings, request.setting)
        measured = run_steps(settings, store)
        request = replace(request, unique_tokens=request.unique_tokens or len(store.train.tokens))
    planned = make_plan(request, own, measured)
    written = record(planned)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", written)
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    console.print(f"{summary(planned)}\n", style="bold")
    for title, header, rows in tables(planned):
        console.print(title, style="bold")
        print_table(console, header, rows)
        console.print()


def _setting(request: Request, bag_size: int | None, ratio: float | None, recommend: bool) -> Setting | None:
    from superpose.plan.response import Setting

    if (bag_size is None) != (ratio is None):
        raise UserError("--bag-size and --ratio belong together; give both, or neither")
    if bag_size is not None and ratio is not None:
        if recommend:
            raise UserError("--recommend chooses bag size and ratio; leave out --bag-size and --ratio")
        return Setting(bag_size, ratio)
    return None if recommend else request.setting


def _with_setting(settings: Recipe, setting: Setting) -> Recipe:
    from superpose.train.config import with_settings

    return with_settings(settings, "superposition", bag_size=setting.bag_size, ratio=setting.ratio)


def _amount(option: str, text: str) -> float:
    """A number with a unit: 270M, 3B, 1.5T."""
    unit = _UNITS.get(text[-1:].lower(), 1.0)
    try:
        amount = float(text[:-1] if unit != 1.0 else text) * unit
    except ValueError:
        amount = 0.0
    if not 0 < amount < 1e18:
        raise UserError(f"{option} {text}: expected an amount such as 270M, 3B or 1.5T")
    return amount


def _price(text: str, with_hardware: bool) -> float:
    try:
        price = float(text.lower().removesuffix("/h"))
    except ValueError:
        price = -1.0
    if not 0 <= price < 1e9:
        raise UserError(f"--price {text}: expected a price of one device an hour, such as 2.5/h")
    if not with_hardware:
        raise UserError("--price would be ignored; say on what with --hardware, such as 8xH100")
    return price
