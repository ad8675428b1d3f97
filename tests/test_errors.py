from importlib import metadata

import pytest

from superpose.errors import UserError, first_line, last_line, missing_package


def test_what_is_quoted_cannot_write_on_a_terminal():
    assert str(UserError("no column '\x1b[31m\0\udcff'\nnor 'ä'")) == "no column '\\x1b[31m\\x00\\udcff'\nnor 'ä'"


def test_of_a_long_message_both_ends_stay():
    message = str(UserError(f"recipe {'a' * 10_000} is not there; check the path"))
    assert message.startswith("recipe aaa")
    assert message.endswith("aaa is not there; check the path")
    assert len(message) <= 802


def test_types_are_named_as_people_write_them():
    error = TypeError("bos_token is <class 'list'>\nand <class 'tokenizers.AddedToken'> was expected")
    assert first_line(error) == "bos_token is list"
    assert last_line(error) == "and AddedToken was expected"
    assert first_line(TimeoutError()) == last_line(TimeoutError()) == "TimeoutError"


def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch):
    requirements = [
        *("torch>=2.9", 'typer>=0.15; extra == "train"', 'superpose[train]; extra == "report"'),
        *('plotly>=6; extra == "report"', "lm-eval<0.5,>=0.4.13; extra == 'evaluate'"),
        "triton>=3.5; sys_platform == 'linux' and extra == 'torchtitan'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)

    def told(module):
        return str(missing_package(ModuleNotFoundError(f"No module named {module!r}", name=module)))

    assert told("typer.core") == "this needs typer, which is not installed; pip install 'superpose[train]'"
    assert "'superpose[report]'" in told("plotly")
    assert "'superpose[evaluate]'" in told("lm_eval.tasks")
    assert "'superpose[torchtitan]'" in told("triton")
    for module in ("torch", "superpose.nothing", "typ", ""):
        with pytest.raises(ModuleNotFoundError):
            told(module)
