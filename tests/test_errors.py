from superpose.errors import UserError


def test_what_is_quoted_cannot_write_on_a_terminal():
    assert str(UserError("no column '\x1b[31m\0\udcff'\nnor 'ä'")) == "no column '\\x1b[31m\\x00\\udcff'\nnor 'ä'"


def test_of_a_long_message_both_ends_stay():
    message = str(UserError(f"recipe {'a' * 10_000} is not there; check the path"))
    assert message.startswith("recipe aaa")
    assert message.endswith("aaa is not there; check the path")
    assert len(message) <= 802
