"""Models that leave and arrive: runs exported, directories imported, and both evaluated."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from checks.fuzz.damage import add_code, damage_file, damage_safetensors, text
from checks.fuzz.judging import FindingError
from checks.fuzz.samples import Samples


def _damaged_model(samples: Samples, place: Path, rng: random.Random) -> None:
    """The exported model with damage, and often with code of others beside it."""
    shutil.copytree(samples.exported, place)
    files = sorted(place.iterdir())
    weights = [1 if file.name == "README.md" else 4 for file in files]
    for file in {rng.choices(files, weights)[0] for _ in range(rng.choice((0, 0, 1, 1, 1, 2)))}:
        if file.suffix == ".safetensors" and rng.random() < 0.7:
            damage_safetensors(rng, file)
        else:
            damage_file(rng, file)
    if rng.random() < 0.4:
        add_code(rng, place)


def feed_export(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Runs with damage anywhere: exported with fitting and with odd options, whole or not at all."""
    from superpose.share import export

    run = folder / "run"
    shutil.copytree(samples.run, run)
    files = [file for file in sorted(run.rglob("*")) if file.is_file()]
    for file in {rng.choice(files) for _ in range(rng.choice((0, 0, 1, 1, 1, 2)))}:
        if file.suffix == ".safetensors" and rng.random() < 0.5:
            damage_safetensors(rng, file)
        else:
            damage_file(rng, file)
    if rng.random() < 0.2:
        add_code(rng, run / "model")
    out = folder / rng.choice(("out",) * 20 + ("run", "a/b", "..", "run/model", "x" * 300))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()}
    step = rng.choice((None,) * 8 + (2, 4, 6, 6, 3, 0, -1, 7, 10**30))
    size = rng.choice(("5GB",) * 20 + ("1KB", "0GB", "5gb", "", text(rng), f"{10**30}TB"))
    bags, average = step == 2 or rng.random() < 0.05, rng.random() < 0.05
    license_id, languages = rng.choice(("", "mit", text(rng))), rng.choice(([], ["en"], [text(rng), "de"]))
    try:
        export(run, out, step, average, bags, size, license_id, languages)
    finally:
        for file, content in before.items():
            if not file.is_file() or file.read_bytes() != content:
                raise FindingError(f"{file} was changed by an export")
    if not {"config.json", "superpose.json", "README.md"} <= {file.name for file in out.iterdir()}:
        raise FindingError("an export that is said to be done is not whole")


def feed_import(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Hugging Face directories with damage and with code of others: checked, and a recipe written for them."""
    from superpose.share import import_model
    from superpose.train.recipe_file import load_recipe

    place, out = (
        folder / "model",
        folder / rng.choice(("on.toml",) * 8 + ("on.json", "on", "model/config.json", ".toml")),
    )
    _damaged_model(samples, place, rng)
    base = None
    if rng.random() < 0.4:
        base = folder / "base.toml"
        shutil.copy(samples.recipe, base)
        if rng.random() < 0.5:
            damage_file(rng, base)
    recipe = import_model(place, out, base)
    if load_recipe(out) != recipe:
        raise FindingError("the recipe that was written is another one")


def feed_evaluate(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Models with damage on texts with damage: predicted and asked, the figures written."""
    from superpose.evaluate.workflow import evaluate

    place = folder / "model"
    _damaged_model(samples, place, rng)
    places = [place] if rng.random() < 0.8 else [samples.exported, place]
    texts = None
    if rng.random() < 0.95:
        shutil.copytree(samples.texts, folder / "texts")
        shutil.copytree(samples.store, folder / "texts" / "store")
        name = rng.choice(("a.txt", "a.jsonl", "a.parquet", "a.jsonl.gz", "store", "saved", "plain.bin"))
        given = folder / "texts" / name
        inside = [given] if given.is_file() else [file for file in sorted(given.rglob("*")) if file.is_file()]
        if inside and rng.random() < 0.5:
            damage_file(rng, rng.choice(inside))
        texts = {rng.choice(("mine", text(rng))): str(given)}
    tasks = rng.choice(([], ["brackets"], ["copy"], ["identifiers"]) * 4 + ([text(rng)],))
    latents = rng.choice((None,) * 9 + (2, 8, 1, 0, 10**9))
    field = rng.choice(("text",) * 20 + ("id", text(rng)))
    out = rng.choice((None, folder / "out"))
    evaluate(places, texts, tasks, field, rng.choice((0.0005, 0.001)), latents, 2, None, "cpu", out)
    if out is not None and not {"evaluation.json", "summary.md"} <= {file.name for file in out.iterdir()}:
        raise FindingError("an evaluation that is said to be done is not written")
