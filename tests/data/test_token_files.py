import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data import readers
from superpose.data.account import Dropped, note
from superpose.data.readers import Source, find_parts, read_part
from superpose.errors import UserError

END = 0
documents = st.lists(st.lists(st.integers(1, 50_000), min_size=1, max_size=12), min_size=1, max_size=15)


def read(source):
    """The documents of all parts, each part as another process would get it."""
    parts = [pickle.loads(pickle.dumps(part)) for part in find_parts(source)]  # noqa: S301
    assert all(part.is_tokens for part in parts)
    found = [document for part in parts for document in read_part(part, END)]
    drops = {}
    for dropped in found:
        if isinstance(dropped, Dropped):
            note(drops, dropped)
    documents = [document.tolist() for document in found if not isinstance(document, Dropped)]
    # All bytes of the tokens are accounted for.
    (file,) = {part.files for part in parts}
    width = parts[0].layout.width
    assert width * sum(map(len, documents)) + drops["framing"].bytes == Path(file[0]).stat().st_size
    return documents


def write_bin(path, documents, dtype="<u2", header=None, last_end=True):
    ids = [token for document in documents for token in [*document, END]]
    tokens = np.array(ids if last_end else ids[:-1], dtype=dtype)
    version = 7 if header == 20240801 else 1
    start = b"" if header is None else np.array([header, version, len(tokens), *[0] * 253], "<i4").tobytes()
    path.write_bytes(start + tokens.tobytes())


def write_megatron(path, documents, code=8, dtype="<u2"):
    """Sequences of at most five tokens, so that documents are made of several."""
    sequences, marks = [], [0]
    for document in documents:
        ids = [*document, END]
        sequences += [ids[start : start + 5] for start in range(0, len(ids), 5)]
        marks.append(len(sequences))
    sizes = np.array([len(sequence) for sequence in sequences], "<i4")
    tokens = np.concatenate(sequences).astype(dtype)
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype("<i8") * tokens.itemsize
    numbers = np.array([len(sequences), len(marks)], "<u8").tobytes()
    header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([code]) + numbers
    index = header + sizes.tobytes() + pointers.tobytes() + np.array(marks, "<i8").tobytes()
    path.with_suffix(".idx").write_bytes(index)
    path.with_suffix(".bin").write_bytes(tokens.tobytes())


@pytest.mark.parametrize(
    ("dtype", "header", "setting"),
    [
        ("<u2", None, "uint16"),
        ("<i8", None, "int64"),
        ("<u4", None, "uint32"),
        ("<u2", 20240520, "auto"),
        ("<u4", 20240801, "auto"),
    ],
)
@given(st.data())
def test_tokens_come_back_whatever_the_parts(tmp_path_factory, dtype, header, setting, data):
    expected = data.draw(documents)
    path = tmp_path_factory.mktemp("bin") / "tokens.bin"
    write_bin(path, expected, dtype, header, last_end=data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "RANGE", data.draw(st.integers(2, 40)))
        whole = read(Source(str(path), dtype=setting))
        if len(expected) > 1:
            assert whole == expected
        else:  # which is cut where parts are
            assert [token for document in whole for token in document] == expected[0]


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8")])
@given(documents, st.integers(2, 40))
def test_megatron_documents_come_back(tmp_path_factory, code, dtype, expected, size):
    path = tmp_path_factory.mktemp("megatron") / "data.bin"
    write_megatron(path, expected, code, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "RANGE", size)
        for location in (path, path.with_suffix(".idx"), path.parent):
            assert read(Source(str(location))) == expected


def test_damaged_token_files_are_named(tmp_path):
    path = tmp_path / "tokens.bin"
    path.write_bytes(b"\1\2\3")
    with pytest.raises(UserError, match=r"tokens\.bin has 3 bytes"):
        find_parts(Source(str(path)))
    write_bin(path, [[1, 2, 3]], header=20240520)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"tokens\.bin has llm\.c's header.*4 tokens"):
        find_parts(Source(str(path)))


@given(st.data())
def test_a_damaged_megatron_index_never_reads_outside_the_tokens(tmp_path_factory, data):
    """Any byte of the index changed: refused, or all that is read are the tokens that are there."""
    path = tmp_path_factory.mktemp("megatron") / "data.bin"
    expected = [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    write_megatron(path, expected)
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    index.write_bytes(content)
    problem = None
    try:
        read_back = read(Source(str(path)))
    except UserError as error:
        problem = str(error)
    if problem is None:  # other cuts between documents, or another type of the same width, are tokens all the same
        assert len(np.concatenate(read_back)) <= len(np.concatenate(expected)) + 3
    else:
        assert "data." in problem


def test_megatron_without_its_other_half(tmp_path):
    write_megatron(tmp_path / "data.bin", [[1, 2]])
    (tmp_path / "data.bin").unlink()
    with pytest.raises(UserError, match=r"data\.bin is not there"):
        find_parts(Source(str(tmp_path / "data.idx")))


def test_megatron_by_a_pattern_is_read_once(tmp_path):
    write_megatron(tmp_path / "data.bin", [[1, 2], [3]])
    for pattern in ("*", "data.*", "*.bin", "*.idx"):
        assert read(Source(str(tmp_path / pattern))) == [[1, 2], [3]]


def test_finding_parts_of_tokens_takes_no_memory_for_each(tmp_path):
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(20_000_000)
    tracemalloc.start()
    try:
        find_parts(Source(str(tmp_path / "tokens.bin"), dtype="uint16"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_tokens_that_are_gone_are_named(tmp_path):
    write_bin(tmp_path / "tokens.bin", [[1, 2]])
    (part,) = find_parts(Source(str(tmp_path / "tokens.bin"), dtype="uint16"))
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(UserError, match=r"tokens\.bin cannot be read"):
        list(read_part(part, END))
