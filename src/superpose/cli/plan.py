"""`superpose plan`."""

import re
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from superpose.cli.options import (
    A_RECIPE,
    AsJson,
    Overrides,
    console,
    load_settings,
    prepared_store,
    print_json,
    say_next,
)
from superpose.errors import UserError

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def plan(
    recipe: Annotated[Path | None, Argument(help=f"{A_RECIPE}; or give --params and --tokens.")] = None,
    params: Annotated[
        str | None, Option(help="Parameters of the model, such as 3B: a Llama of about that size.")
    ] = None,
    tokens: Annotated[
        str | None, Option(help="Budget, such as 60B: the tokens that an ordinary run would read.")
    ] = None,
    data: Annotated[str | None, Option(help="How many tokens of unique text you have, such as 100B.")] = None,
    hardware: Annotated[str | None, Option(help="The devices, such as 8xH100, or cpu.")] = None,
    flops: Annotated[str | None, Option(help="Peak FLOP/s of one device, such as 400T.")] = None,
    memory: Annotated[str | None, Option(help="Memory of one device in GiB, such as 48G.")] = None,
    price: Annotated[str | None, Option(help="Price of one device for an hour, such as 2.5/h or '2 EUR/h'.")] = None,
    mfu: Annotated[
        float | None,
        Option(min=0.001, max=1, help="Utilisation of the devices; by default a range, from public runs."),
    ] = None,
    co2: Annotated[
        float | None, Option(min=0, help="Grams of CO2 for a kWh; by default 445, the world's mean.")
    ] = None,
    bag_size: Annotated[int | None, Option(min=1, help="Tokens in a bag (s), with --ratio.")] = None,
    ratio: Annotated[float | None, Option(min=0, max=1, help="Share of the steps in superposition (r).")] = None,
    recommend: Annotated[
        bool, Option("--recommend", help="Recommend bag size and ratio in place of the recipe's own.")
    ] = False,
    vocab_size: Annotated[
        int | None, Option(min=2, help="With --params: entries of the vocabulary; by default what suits the size.")
    ] = None,
    latents: Annotated[
        int | None, Option(min=1, help="With --params: positions in a sequence; by default 2048.")
    ] = None,
    compared: Annotated[
        list[Path] | None,
        Option(help="A comparison of your own to learn from, where it is near enough; repeatable."),
    ] = None,
    calibrate: Annotated[
        bool, Option("--calibrate", help="Time a few steps of both phases here, and plan with that.")
    ] = False,
    out: Annotated[Path | None, Option(help="Directory for plan.json, which 'superpose report' reads.")] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Say what TST would bring, what it would cost, and whether to do it: go, small gain, compare first, or do not."""
    # What is mistyped is said before anything heavy is loaded.
    amounts = {"--data": data, "--tokens": tokens, "--params": params, "--flops": flops}
    unique, budget, size, speed = (None if text is None else _amount(option, text) for option, text in amounts.items())
    hourly = None if price is None else _price(price)
    room = None if memory is None else _gib(memory)
    for option, value in {"--flops": flops, "--memory": memory, "--price": price}.items():
        if value is not None and hardware is None:
            raise UserError(f"{option} would be ignored; name the devices it is of with --hardware, such as 8xH100")

    if (bag_size is None) != (ratio is None):
        raise UserError("--bag-size and --ratio belong together; give both, or neither")
    if recommend and bag_size is not None:
        raise UserError("--recommend chooses bag size and ratio; leave out --bag-size and --ratio")

    from dataclasses import replace

    from superpose.compare.comparison import Comparison
    from superpose.files import write_json
    from superpose.plan import Setting, parse_hardware, points_of, request_for, request_of, summary
    from superpose.plan.advisor import make_plan
    from superpose.plan.cost import calibrate as run_steps
    from superpose.plan.fit import source_tokens
    from superpose.plan.request import Price
    from superpose.plan.tables import record, tables
    from superpose.results.progress import Display, print_table
    from superpose.train.loop import check_device
    from superpose.train.recipe_file import load_recipe, with_settings

    machine, settings = parse_hardware(hardware, speed, room) if hardware else None, None
    if recipe is not None:
        own = {"--params": params, "--tokens": tokens, "--vocab-size": vocab_size, "--latents": latents}
        for option, said in own.items():
            if said is not None:
                raise UserError(f"{option} would be ignored: the recipe says it; change it with --set")
        # A plan is made before tokenizer and devices have to be here; steps are run with them.
        settings = load_settings(recipe, overrides) if calibrate else load_recipe(recipe, overrides)
        if calibrate:
            check_device(settings.train.device)
        request = request_of(settings, machine, unique)
    elif size is None or budget is None:
        raise UserError("give a recipe, or --params and --tokens, such as --params 3B --tokens 60B")
    elif overrides:
        raise UserError("--set changes a recipe's settings; without a recipe it would be ignored")
    else:
        request = request_for(size, budget, vocab_size, 2048 if latents is None else latents, machine, unique)
    given = request.setting if bag_size is None or ratio is None else Setting(bag_size, ratio)
    request = replace(
        request,
        setting=None if recommend else given,
        schedule=request.schedule if given == request.setting else None,
        utilisation=mfu,
        price_per_hour=None if hourly is None else Price(*hourly),
        co2_grams=request.co2_grams if co2 is None else co2,
    )
    points = [point for place in compared or [] for point in points_of(Comparison.load(place), str(place))]
    terminal, measured = console(stderr=as_json), None
    if calibrate:
        if settings is None:
            raise UserError("--calibrate runs steps of a recipe's model on its text; give a recipe that can run here")
        with Display(terminal) as display:
            store = prepared_store(settings, display)
        if (setting := request.setting) is not None and setting.bag_size > 1 and request.schedule is None:
            short = settings.superposition.model_copy(update={"stages": ()})
            settings = settings.model_copy(update={"superposition": short})
            settings = with_settings(settings, "superposition", bag_size=setting.bag_size, ratio=setting.ratio)
        measured = run_steps(settings, store)
        text = request.unique_tokens or len(store.train.tokens)
        request = replace(request, unique_tokens=text, sources=source_tokens(store.train))
    planned = make_plan(request, points, measured)
    written = record(planned)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", written)
    if as_json:
        print_json(written)
        return
    terminal.print(f"{summary(planned)}\n", style="bold")
    for title, header, rows in tables(planned):
        terminal.print(title, style="bold")
        print_table(terminal, header, rows)
        terminal.print()
    if recipe is None:
        say_next("recipes")
    elif planned.decision != "do not":
        chosen = ["--bag-size", planned.setting.bag_size, "--ratio", planned.setting.ratio]
        changed = [*(f"--set={change}" for change in overrides or []), *(chosen if recommend or bag_size else [])]
        verb, to = ("train", ["--out", Path("runs", recipe.stem)]) if planned.decision == "go" else ("compare", [])
        say_next(verb, recipe, *changed, *to)


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


def _gib(text: str) -> float:
    """Memory in bytes, out of 48, 48G, 48GB or 48GiB."""
    number = text.lower().removesuffix("b").removesuffix("i").removesuffix("g")
    if not number.replace(".", "", 1).isdecimal() or float(number) <= 0:
        raise UserError(f"--memory {text}: expected GiB of one device, such as 48G")
    return float(number) * 2**30


def _price(text: str) -> tuple[float, str]:
    """Of one device an hour, and its currency: 2.5/h, $2.5/h, 2 EUR/h."""
    sign = r"[$€£¥]|[A-Za-z]{3}"
    found = re.fullmatch(rf"\s*({sign})?\s*(\d+(?:\.\d+)?)\s*({sign})?\s*(?:/\s*h)?\s*", text)
    if found is None or (found[1] and found[3]) or not float(found[2]) < 1e9:
        raise UserError(f"--price {text}: expected a price of one device an hour, such as 2.5/h or '2 EUR/h'")
    return float(found[2]), (found[1] or found[3] or "").upper()
