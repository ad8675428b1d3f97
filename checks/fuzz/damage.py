"""Damage: to values, to bytes, and to a file as what it is."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path
from typing import Any

_DEEP = "@deep@"
"""Stands for lists in lists, deeper than any parser goes; see `as_json`."""
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**15, 2**31, 2**32 - 1, 2**63, 2**64, 10**30, -(10**30), 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", " ", "a", "0", "-1", "1e9", "true", "null", "\0", "\n", "\ud800", "é" * 40, "\U0001d518💥", "x" * 5000),
    *("\x1b[31m", "../../outside/secret", "../../../outside", "/etc/hostname", "~", "$HOME", "a/../../outside"),
    *("\\\\?\\C:\\", "con"),
    *("!!python/object/apply:os.system [touch CANARY]", "__import__('os').system('touch CANARY')", "{{7*7}}", "%s%n"),
    *([], {}, [[]], [0], [None], [1, 2, 3], ["a"] * 50, {"": None}, {"a": {"b": {}}}, [{}] * 3, _DEEP),
)
PICKLE = b"cposix\nsystem\n(S'touch CANARY'\ntR."
_ODD_BYTES = (
    *(b"", b"\0", b"\0" * 64, b"\xff" * 16, b"\n", b"\r\n\r\n", b"{", b"}", b'"', b"[", b"]", b"=", b"\\u0000"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfe\0\0", b"\xc0\x80", b"\xed\xa0\x80", b"NaN", b"1e999", b"9" * 5000),
    *(b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0\0\0\0\0\0\0\x80", b"PK\x03\x04", b"PAR1", b"ARROW1", PICKLE),
    *(b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"[" * 3000, b'{"a":' * 3000),
)


def odd(rng: random.Random) -> Any:
    if rng.random() < 0.2:
        return rng.choice((rng.randint(-10, 100), rng.uniform(-2, 2), rng.randint(-(2**70), 2**70), text(rng)))
    return rng.choice(_ODD)


def text(rng: random.Random) -> str:
    """A random text, its characters from all over Unicode."""
    ranges = ((32, 126), (0, 31), (128, 0x2FFF), (0xD800, 0xDFFF), (0x1F300, 0x1FAFF))
    return "".join(chr(rng.randint(*rng.choices(ranges, (12, 1, 1, 1, 1))[0])) for _ in range(rng.randint(0, 12)))


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one to four things done to them."""
    held = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(held))
        stop = min(len(held), start + rng.choice((1, 2, 4, 8, 64, 1000)))
        match rng.randrange(8):
            case 0 if held:
                held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
            case 1:
                del held[start:stop]
            case 2:
                held[start:start] = held[start:stop] * rng.randint(1, 3)
            case 3:
                held[start:start] = rng.randbytes(rng.choice((1, 3, 8, 100)))
            case 4:
                del held[start:]
            case 5:
                held += rng.randbytes(rng.choice((1, 2, 7, 300)))
            case 6:
                held[start:stop] = rng.choice(_ODD_BYTES)
            case _:
                held[start:stop] = bytes(rng.randrange(256) for _ in range(stop - start))
    return bytes(held)


def altered(rng: random.Random, value: Any) -> Any:
    """A copy of what JSON holds, in which one thing somewhere is another."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.12:
        return odd(rng)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    changed: Any = value.copy()
    match rng.randrange(10):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[rng.choice((text(rng), str(key) + "_", "__class__", "auto_map"))] = changed.pop(key)
        case 2 if isinstance(changed, dict):
            changed[text(rng)] = odd(rng)
        case 3 if isinstance(changed, list):
            changed.insert(key, odd(rng))
        case _:
            changed[key] = altered(rng, value[key])
    return changed


def as_json(value: Any) -> bytes:
    deep = f"{'[' * 5000}{']' * 5000}"
    return json.dumps(value).replace(json.dumps(_DEEP), deep).encode("utf-8", "surrogatepass")


def as_toml(value: Any) -> str:
    """A value as TOML; what TOML has no word for as something it has none for either."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if value == _DEEP:
        return "[" * 5000 + "]" * 5000
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _parsed(content: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


def damage_file(rng: random.Random, file: Path) -> None:
    """Damages a file as what it is: JSON mostly as JSON, anything by its bytes, or there is no file any more."""
    if not file.is_file():
        return  # damaged before
    content = file.read_bytes()
    file.unlink()
    chance = rng.random()
    if chance < 0.04:
        return
    if chance < 0.06:
        file.mkdir()
    elif chance < 0.08:
        file.symlink_to(rng.choice((str(Path.cwd().parent / "outside" / "secret"), "nowhere", file.name, "..")))
    elif file.suffix == ".json" and chance < 0.8 and (value := _parsed(content)) is not None:
        for _ in range(rng.randint(1, 3)):
            value = altered(rng, value)
        file.write_bytes(as_json(value))
    elif file.suffix == ".jsonl" and chance < 0.8:
        lines = content.splitlines()
        for _ in range(rng.randint(1, 3)):
            number = rng.randrange(len(lines))
            with contextlib.suppress(ValueError, RecursionError):
                lines[number] = as_json(altered(rng, json.loads(lines[number])))
        file.write_bytes(b"\n".join(lines) + b"\n")
    else:
        file.write_bytes(damaged(rng, content))


def without_null(value: Any) -> Any:
    """The same without nulls, which TOML has none of."""
    if isinstance(value, dict):
        return {key: without_null(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_null(inner) for inner in value if inner is not None]
    return value


def damage_safetensors(rng: random.Random, file: Path) -> None:
    """Its header, mostly as JSON: shapes, types, places, PyTorch's notes on parts; or any byte."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    file.unlink()
    match rng.randrange(6):
        case 0:
            file.write_bytes(damaged(rng, content))
        case 1:
            file.write_bytes(PICKLE)
        case 2:
            file.symlink_to(rng.choice(sorted((Path.cwd().parent / "outside").iterdir())))
        case 3 if "DCP_SHARDING_INFO" in header["__metadata__"]:
            notes = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
            changed = altered(rng, altered(rng, notes) or notes)
            header["__metadata__"]["DCP_SHARDING_INFO"] = as_json(changed).decode("utf-8", "replace")
            _write_safetensors(file, header, tensors)
        case 4:
            name = rng.choice([name for name in header if name != "__metadata__"])
            new = rng.choice(
                (name + "x", "optimizer." + name, f"{name}.../outside", name.replace("model.", "average."))
            )
            header[new] = header.pop(name)
            _write_safetensors(file, header, tensors)
        case _:
            _write_safetensors(file, altered(rng, header), tensors)


def _write_safetensors(file: Path, header: Any, tensors: bytes) -> None:
    head = as_json(header)
    head += b" " * (-len(head) % 8)
    file.write_bytes(len(head).to_bytes(8, "little") + head + tensors)


_CODE = "from pathlib import Path\nPath('CANARY').touch()\nclass Evil:\n    def __init__(self, *a, **k): pass\n"


def add_code(rng: random.Random, place: Path) -> None:
    """What would be run, were code beside a model or a tokenizer ever run."""
    (place / "evil.py").write_text(_CODE, encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = place / name
        if not file.is_file() or rng.random() < 0.3:
            continue
        with contextlib.suppress(ValueError, RecursionError):
            settings = json.loads(file.read_bytes())
            if not isinstance(settings, dict):
                continue
            classes = ("AutoConfig", "AutoModelForCausalLM", "AutoModel")
            settings["auto_map"] = (
                {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
                if name.startswith("tokenizer")
                else dict.fromkeys(classes, "evil.Evil")
            )
            if rng.random() < 0.5:
                settings["tokenizer_class" if name.startswith("tokenizer") else "model_type"] = "Evil"
            file.write_bytes(as_json(settings))
    for name in ("pytorch_model.bin", "model.pt", "added_tokens.pkl"):
        if rng.random() < 0.3:
            (place / name).write_bytes(PICKLE)
    if rng.random() < 0.3:
        (place / "model.safetensors").unlink(missing_ok=True)
