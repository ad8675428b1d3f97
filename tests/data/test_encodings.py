import codecs
import encodings
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data.account import Dropped
from superpose.data.encodings import check_encoding, decode, line_end_of, resolve_encoding
from superpose.errors import UserError


def is_known(name):
    try:
        check_encoding(name)
    except UserError:
        return False
    return True


ALL = sorted({codecs.lookup(m.name).name for m in pkgutil.iter_modules(encodings.__path__) if is_known(m.name)})


def repertoire(name):
    """Characters that an encoding has, from all over it, without line ends."""
    characters = []
    for code in (*range(1, 0x500), *range(0x500, 0x10000, 7), *range(0x10000, 0x11000, 97)):
        character = chr(code)
        if character in "\n\r" or 0xD800 <= code < 0xE000:
            continue
        try:
            if character.encode(name).decode(name) == character:
                characters.append(character)
        except UnicodeError:
            continue
    return characters


def in_chunks(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("name", ALL)
def test_text_in_any_encoding_comes_out_to_the_character_wherever_it_is_cut(name):
    characters = repertoire(name)
    # Each beside many others, in an order of its own.
    text = "".join(
        characters[number * step % len(characters)] for step in (1, 7, 11) for number in range(len(characters))
    )
    data = text.encode(name)
    resolved, mark = resolve_encoding(data[:4], name)
    for size in (7, 64, 10_001):
        assert "".join(decode(in_chunks(data[mark:], size), resolved, "file")) == text


def test_all_families_are_among_them():
    assert len(ALL) > 90
    assert {
        "utf-7",
        "hz",
        "iso2022_kr",
        "gb18030",
        "shift_jis_2004",
        "utf-16-be",
        "utf-32",
        "cp037",
        "big5hkscs",
    } <= set(ALL)
    assert line_end_of("cp037") == b"\x25"
    assert line_end_of("latin-1") == line_end_of("utf-8") == b"\n"
    for name in ("shift_jis", "gb18030", "utf-16-le", "utf-7", "hz", "iso2022_jp", "big5", "euc_kr"):
        assert line_end_of(name) is None


@pytest.mark.parametrize("encoding", ["base64", "idna", "punycode", "undefined", "a\0b", "utf-9", "rot13", ""])
def test_an_encoding_of_no_text_is_refused(encoding):
    with pytest.raises(UserError, match="no encoding"):
        check_encoding(encoding)


pieces = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.binary(max_size=3), max_size=12)


@given(pieces, st.integers(1, 50), st.integers(0, 1000))
def test_of_damaged_utf_8_what_is_text_is_kept_and_each_byte_counts(pieces, size, stretch):
    data = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("superpose.data.encodings._STRETCH", stretch + 1)
        patch.setattr("superpose.data.encodings._MOST_ODD", 1.0)
        found = list(decode(in_chunks(data, size), "utf-8", "file"))
    texts = [text for text in found if isinstance(text, str)]
    assert "".join(texts) == data.decode(errors="ignore").replace("\0", "")
    assert sum(len(text.encode()) for text in texts) + dropped(found) == len(data)


@given(
    st.binary(max_size=300),
    st.sampled_from(["utf-8", "utf-16-le", "shift_jis", "iso2022_jp", "utf-7", "cp1252"]),
    st.data(),
)
def test_noise_in_any_encoding_ends_and_is_counted_where_it_is_dropped(data, encoding, draw):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("superpose.data.encodings._STRETCH", draw.draw(st.integers(1, 100)))
        patch.setattr("superpose.data.encodings._MOST_ODD", draw.draw(st.sampled_from([0.01, 0.5])))
        chunks = in_chunks(data, draw.draw(st.integers(1, 120)))
        found = list(decode(chunks, encoding, "file"))
    for text in found:
        assert isinstance(text, Dropped) or text.encode() is not None
    assert dropped(found) <= len(data)
    if encoding == "utf-8":
        assert sum(len(text.encode()) for text in found if isinstance(text, str)) + dropped(found) == len(data)


def dropped(found):
    return sum(drop.bytes for drop in found if isinstance(drop, Dropped))


def test_a_byte_costs_itself_and_noise_its_stretch():
    text = "one line and another\n" * 20_000
    data = bytearray(text.encode())
    data[100_001] = 0x92
    data[300_000:302_000] = b"\xff\x00" * 1000
    found = list(decode([bytes(data)], "utf-8", "a.txt"))
    (byte, stretch) = (drop for drop in found if isinstance(drop, Dropped))
    assert byte == Dropped("odd_bytes", 1, where="a.txt, byte 100,001")
    assert stretch == Dropped("odd_stretches", 2**16, where="a.txt, byte 300,000")
    kept = [text for text in found if isinstance(text, str)]
    assert "".join(kept) == text[:100_001] + text[100_002 : 2**18] + text[2**18 + 2**16 :]


def test_what_stands_before_and_after_damage_is_decoded_by_itself():
    gap = Dropped("compression", 5)
    chunks = ["漢".encode()[:2], gap, "漢".encode()[2:] + b"x" * 200]
    found = list(decode(chunks, "utf-8", "file"))
    assert gap in found
    assert "".join(text for text in found if isinstance(text, str)) == "x" * 200
    assert dropped(found) == 8
