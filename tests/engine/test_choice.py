import pytest

from superpose.engine import Local, open_engine
from superpose.engine.ray import Ray
from superpose.errors import UserError


def test_an_engine_is_chosen_by_its_name():
    assert isinstance(open_engine(), Local)
    assert isinstance(open_engine("ray"), Ray)
    assert isinstance(open_engine("ray://head:10001"), Ray)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("slurm",), "--engine slurm: expected local, ray or ray://HOST:PORT"),
        (("local", -1), "--cores-per-run -1: expected"),
        (("local", 0, 1.5), "--gpus-per-run 1.5: expected"),
    ],
)
def test_what_is_no_engine_is_said_in_a_sentence(given, message):
    with pytest.raises(UserError, match=message):
        open_engine(*given)
