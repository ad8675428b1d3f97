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
from superpose.data.token_files import layout_of
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


def raw(path, dtype, vocab_size, count=4000, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocab_size, count)
    path.write_bytes(ids.astype(dtype).tobytes())
    return str(path)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8"])
@pytest.mark.parametrize("vocab_size", [257, 50_257, 2**16, 100_000, 2**20])
def test_the_type_of_bare_numbers_is_told_by_the_vocabulary(tmp_path, dtype, vocab_size):
    file = raw(tmp_path / "a.bin", dtype, min(vocab_size, 2**16) if dtype == "<u2" else vocab_size)
    if dtype == "<u2" and vocab_size > 2**16:
        with pytest.raises(UserError, match=r"look like uint16, which cannot hold a vocabulary of .*--dtype uint16"):
            layout_of(file, "auto", vocab_size)
        assert layout_of(file, "uint16", vocab_size).dtype == "<u2"
        return
    found = layout_of(file, "auto", vocab_size)
    assert np.dtype(found.dtype).itemsize == np.dtype(dtype).itemsize
    assert found.count == 4000


def test_a_large_file_is_looked_at_all_over(tmp_path):
    """Only in its last third are numbers that tell."""
    ids = np.zeros(2_000_000, dtype="<u2")
    ids[1_400_000:] = np.random.default_rng(0).integers(0, 50_000, 600_000)
    ids.tofile(tmp_path / "a.bin")
    assert layout_of(str(tmp_path / "a.bin"), "auto", 50_257).dtype == "<u2"


@pytest.mark.parametrize("dtype", [">u2", "<f4"])
def test_numbers_that_are_no_ids_are_refused(tmp_path, dtype):
    values = np.random.default_rng(0).random(4000) * 30_000 + 1
    (tmp_path / "a.bin").write_bytes(values.astype(dtype).tobytes())
    with pytest.raises(UserError, match=r"are no ids of a vocabulary of 30,001.*--dtype"):
        layout_of(str(tmp_path / "a.bin"), "auto", 30_001)


def test_what_cannot_be_told_is_asked_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(np.array([5, 0, 7, 0], "<u2").tobytes())
    with pytest.raises(UserError, match=r"may be uint32 or uint16; say which with --dtype"):
        layout_of(str(tmp_path / "a.bin"), "auto", 300)
    assert layout_of(str(tmp_path / "a.bin"), "uint32", 300).count == 2


@pytest.mark.parametrize("start", [b"LITPKDS", b"\x93NUMPY", b"GGUF"])
def test_another_programs_header_is_named(tmp_path, start):
    (tmp_path / "a.bin").write_bytes(start + bytes(17) + np.arange(400, dtype="<u2").tobytes())
    with pytest.raises(UserError, match=r"a\.bin is .*write its tokens as raw uint16 or uint32"):
        layout_of(str(tmp_path / "a.bin"), "auto", 50_257)


@pytest.mark.parametrize(
    ("magic", "version", "dtype", "message"),
    [
        (20240801, 1, "auto", "of version 1, and version 7 is read"),
        (20240520, 7, "auto", "of version 7, and version 1 is read"),
        (20240801, 7, "uint16", "header for uint32; leave out dtype, which is uint16"),
    ],
)
def test_each_header_has_its_version_and_type(tmp_path, magic, version, dtype, message):
    header = np.array([magic, version, 4, *[0] * 253], "<i4").tobytes()
    (tmp_path / "a.bin").write_bytes(header + bytes(4 * (4 if magic == 20240801 else 2)))
    with pytest.raises(UserError, match=message):
        layout_of(str(tmp_path / "a.bin"), dtype, 2**17)


def test_tokens_without_ends_are_cut_and_all_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 20_000)
    ids = np.random.default_rng(0).integers(1, 50_000, 30_000).astype("<u2")
    for last in ([], [0]):
        tokens = np.array([*ids, *last], "<u2")
        tokens.tofile(tmp_path / "a.bin")
        found = [
            document
            for part in find_parts(Source(str(tmp_path / "a.bin")), 50_257, END)
            for document in read_part(part, END)
            if not isinstance(document, Dropped)
        ]
        assert np.concatenate(found).tolist() == ids.tolist()
        assert max(map(len, found)) <= 4096
