import gzip
import json
import os
import pickle
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data import readers, text_files
from superpose.data.account import Dropped, note
from superpose.data.readers import PYTHON_SOURCES, Source, find_parts, read_part
from superpose.errors import UserError

# Line ends as Python counts them, but for the one that text is cut at, would make other pieces.
line_ends = "\0\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=line_ends), max_size=12)
paragraphs = st.lists(lines.map(lambda line: line.replace("\n", " ")), max_size=30).map("\n".join)


def read_all(source):
    """What all parts hold, each part as another process would get it."""
    parts = [pickle.loads(pickle.dumps(part)) for part in find_parts(source)]  # noqa: S301
    return [document for part in parts for document in read_part(part)]


def read(source):
    """The documents."""
    return [document for document in read_all(source) if not isinstance(document, Dropped)]


def dropped(source):
    """Count and bytes of what is no document, by reason."""
    drops = {}
    for found in read_all(source):
        if isinstance(found, Dropped):
            note(drops, found)
    return {reason: (count.count, count.bytes) for reason, count in drops.items()}


def compressed(path, content):
    """Writes a file in the way its name says."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes(content)
    return Source(str(path))


@given(paragraphs, st.integers(1, 60), st.integers(13, 40))
def test_one_text_is_cut_at_lines_and_nothing_is_lost(tmp_path_factory, text, size, piece):
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "RANGE", size)
        patch.setattr(readers, "PIECE", piece)
        patch.setattr(text_files, "PIECE", piece)
        for name in ("book.txt", "book.txt.gz", "book.txt.zst"):
            pieces = read(compressed(folder / name, text.encode()))
            assert "".join(pieces) == text
            assert all(piece.endswith("\n") for piece in pieces[:-1])


def test_pieces_start_after_blank_lines_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 2**16)
    text = "".join(f"paragraph {number}, line one\nline two\n\n" for number in range(20_000))
    (tmp_path / "book.txt").write_text(text)
    assert len(find_parts(Source(str(tmp_path / "book.txt")))) > 10
    pieces = read(Source(str(tmp_path / "book.txt")))
    assert "".join(pieces) == text
    assert all(piece.startswith("paragraph") and piece.endswith("\n\n") for piece in pieces)
    assert max(map(len, pieces)) < 2**15


def test_line_ends_of_two_characters_make_blank_lines_too(tmp_path):
    text = "".join(f"paragraph {number}, line one\r\nline two\r\n\r\n" for number in range(2000))
    (tmp_path / "book.txt").write_bytes(text.encode())
    pieces = read(Source(str(tmp_path / "book.txt")))
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert all(piece.startswith("paragraph") for piece in pieces)


def test_many_files_are_documents_and_hidden_ones_are_not(tmp_path):
    for number in range(120):
        path = tmp_path / f"part{number % 3}" / f"{number:03d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"document {number}\n\n" * 2000)
    (tmp_path / "binary").write_bytes(b"\x89PNG\x00\x01\x02\x03\x04")
    (tmp_path / "zeros").write_bytes(b"text\0text")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret")
    documents = read(Source(str(tmp_path)))
    assert dropped(Source(str(tmp_path))) == {"not_text": (2, 18)}
    assert sorted(documents) == sorted(f"document {number}\n\n" * 2000 for number in range(120))
    assert len(read(Source(str(tmp_path / "**" / "*5.txt")))) == 12 * 2  # of 26 kB, in pieces


@pytest.mark.parametrize(
    ("encoding", "setting"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-8"),
        ("utf-32", "utf-8"),
        ("latin-1", "latin-1"),
        ("utf-16-le", "utf-16-le"),
    ],
)
def test_encodings_and_byte_order_marks(tmp_path, monkeypatch, encoding, setting):
    monkeypatch.setattr(readers, "RANGE", 50)
    text = "é line\n\n" * 40
    (tmp_path / "text.txt").write_bytes(text.encode(encoding))
    assert "".join(read(Source(str(tmp_path / "text.txt"), encoding=setting))) == text


def test_a_file_in_another_encoding_is_not_text(tmp_path):
    (tmp_path / "text.txt").write_bytes("é".encode("latin-1"))
    assert read_all(Source(str(tmp_path / "text.txt"))) == [
        Dropped("odd_stretches", 1, where=f"{tmp_path / 'text.txt'}, byte 0")
    ]
    with pytest.raises(UserError, match="no encoding 'utf-9'"):
        find_parts(Source(str(tmp_path / "text.txt"), encoding="utf-9"))


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), max_size=30),
    st.integers(1, 80),
)
def test_json_lines_come_back_whatever_the_parts(tmp_path_factory, texts, size):
    folder = tmp_path_factory.mktemp("json")
    content = "\n\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "RANGE", size)
        for name in ("a.jsonl", "a.json.gz", "a.ndjson.zst"):
            assert read(compressed(folder / name, content)) == texts


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert read(Source(str(tmp_path / "a.jsonl"))) == ["a\ufffdb"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "is not JSON"),
        ("[1]", "is no record"),
        ('{"text": 3}', "has no text in 'text'; its fields are 'text'"),
        ("[" * 100_000, "is not JSON"),
        ('{"text": "\\x"}', "is not JSON"),
    ],
)
def test_a_broken_record_costs_itself_and_is_named(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line + '\n{"text": "too"}\n')
    fine, broken, too = read_all(Source(str(file)))
    assert (fine, too) == ("fine", "too")
    assert broken.bytes == len(line) + 1
    assert f"{file}, line 2 {message}" in broken.where
    # Where there is nothing else, it is no file of records.
    for lines in (1, 30):
        file.write_text(f"{line}\n" * lines)
        with pytest.raises(UserError, match="line 1 " + message):
            read(Source(str(file)))


def test_another_field_is_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1}\n' * 3)
    with pytest.raises(UserError, match=r"line 1 has no text in 'text'; its fields are 'body', 'id': name one"):
        read(Source(str(tmp_path / "a.jsonl")))


@pytest.fixture
def table():
    return pa.table({"id": range(50), "body": [None if number == 7 else f"text {number}" for number in range(50)]})


def test_parquet_by_row_groups(tmp_path, table, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 200)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    source = Source(str(tmp_path / "a.parquet"), field="body")
    assert len(find_parts(source)) > 2
    assert read(source) == [f"text {number}" for number in range(50) if number != 7]
    with pytest.raises(UserError, match=r"a\.parquet has no column 'text'; its columns are id, body"):
        read(Source(str(tmp_path / "a.parquet")))
    with pytest.raises(UserError, match=r"column 'id' holds int"):
        read(Source(str(tmp_path / "a.parquet"), field="id"))


def save_dataset(folder, table, **state):
    """As `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=9)
    content = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]} | state
    (folder / "state.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset(tmp_path, table):
    expected = [f"text {number}" for number in range(50) if number != 7]
    save_dataset(tmp_path / "all" / "train", table)
    save_dataset(tmp_path / "all" / "test", table)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for folder in ("all", "all/train", "all/test"):
        assert read(Source(str(tmp_path / folder), field="body")) == expected
    save_dataset(tmp_path / "shuffled", table, _indices_data_files=[{"filename": "x"}])
    with pytest.raises(UserError, match="flatten_indices"):
        find_parts(Source(str(tmp_path / "shuffled")))
    save_dataset(tmp_path / "outside", table, _data_files=[{"filename": "../all/train/data-00000-of-00001.arrow"}])
    with pytest.raises(UserError, match="outside"):
        find_parts(Source(str(tmp_path / "outside")))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_files_are_named(tmp_path, table, name, damage):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table, path)
    elif name == "a.arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    else:
        compressed(path, b'{"body": "some text"}\n' * 1000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"noise" * 30)
    source = Source(str(path), field="body")
    if damage == "noise" and path.suffix in (".gz", ".zst"):
        with pytest.raises(UserError, match=rf"{name} is named {path.suffix} but does not begin"):
            read(source)
        return
    *_, last = read_all(source)
    assert last.reason in ("compression", "columns", "files")
    assert 0 < last.bytes <= len(content)
    assert name in last.where


@pytest.mark.parametrize("location", ["no/such/file", "no*such", ""])
def test_what_is_not_there_is_named(location):
    with pytest.raises(UserError, match=r"is not there|no name"):
        find_parts(Source(location))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no files"):
        find_parts(Source(str(tmp_path)))


def test_the_default_corpus_is_python():
    parts = find_parts(Source(PYTHON_SOURCES))
    assert all(part.kind == "text" and not part.piece for part in parts)
    documents = [text for text in read_part(parts[0]) if isinstance(text, str)]
    assert sum("import " in text for text in documents) > len(documents) / 2


def test_a_small_text_is_one_piece(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    assert read(Source(str(tmp_path / "a.txt"))) == ["one\n\ntwo\n\nthree"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("character", ["x", "é", "漢", "🦉"])
def test_a_text_without_line_ends_is_cut_between_characters(tmp_path, monkeypatch, name, character):
    monkeypatch.setattr(readers, "RANGE", 101)
    monkeypatch.setattr(text_files, "_LONGEST_LINE", 50)
    documents = read(compressed(tmp_path / name, (character * 300).encode()))
    assert len(documents) > 1
    assert "".join(documents) == character * 300


def test_bytes_that_only_go_on_are_not_text(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 101)
    monkeypatch.setattr(text_files, "_LONGEST_LINE", 50)
    (tmp_path / "a.img").write_bytes(b"\x80" * 300)
    assert read(Source(str(tmp_path / "a.img"))) == []
    assert dropped(Source(str(tmp_path / "a.img")))["odd_stretches"][1] == 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_only_the_first_mark_of_a_text_is_one(tmp_path, monkeypatch, encoding, name):
    monkeypatch.setattr(readers, "RANGE", 40)
    text = ("x" * 37 + "\n\n" + "\ufeff" + "y" * 30 + "\n\n") * 4
    assert "".join(read(Source(compressed(tmp_path / name, text.encode()).location, encoding=encoding))) == text


@pytest.mark.parametrize("encoding", ["utf_16_le", "U16"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst"])
def test_encodings_go_by_all_their_names(tmp_path, monkeypatch, encoding, name):
    monkeypatch.setattr(readers, "RANGE", 50)
    text = "a\n\n\u0a00b\n" * 20
    assert "".join(read(Source(compressed(tmp_path / name, text.encode(encoding)).location, encoding=encoding))) == text


@pytest.mark.parametrize("encoding", ["base64", "undefined", "a\0b"])
def test_an_encoding_of_no_text_is_refused(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="no encoding"):
        find_parts(Source(str(tmp_path / "a.txt"), encoding=encoding))


def test_a_large_text_among_many_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 1000)
    for number in range(100):
        (tmp_path / f"{number:03d}.txt").write_text(f"document {number}")
    large = "paragraph\n\n" * 400
    (tmp_path / "large.txt").write_text(large)
    parts = find_parts(Source(str(tmp_path)))
    cut = [part for part in parts if part.files == (str(tmp_path / "large.txt"),)]
    assert len(cut) == 5
    assert "".join(text for part in cut for text in read_part(part)) == large


def test_records_without_text_in_them_are_skipped(tmp_path):
    """In all formats alike."""
    texts = ["x", None, "", "y", None]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + '{"id": 1}\n')
    records = pa.table({"text": [*texts, None]})
    pq.write_table(records, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", records.schema) as stream:
        stream.write_table(records)
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        assert read(Source(str(tmp_path / name))) == ["x", "y"]
        assert dropped(Source(str(tmp_path / name))) == {"no_text": (4, 0)}


@pytest.mark.parametrize("content", ['[\n{"text": "x"},\n{"text": "y"},\n]', '[{"text": "x"}]', '{\n"text": "x"\n}'])
def test_json_that_is_not_in_lines_is_to_be_converted(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json, line 1 .*JSON lines.*convert"):
        read(Source(str(tmp_path / "a.json")))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.zst"])
def test_an_empty_compressed_file_is_damaged(tmp_path, name):
    (tmp_path / name).touch()
    (found,) = read_all(Source(str(tmp_path / name)))
    assert found.reason == "files"
    assert f"{name} is empty" in found.where


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("text")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"locked cannot be read \(Permission denied\)"):
        find_parts(Source(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_columns_of_one_name_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    if suffix == "parquet":
        pq.write_table(twice, path)
    else:
        with pa.ipc.new_stream(path, twice.schema) as stream:
            stream.write_table(twice)
    with pytest.raises(UserError, match=r"several columns 'text'"):
        read(Source(str(path)))


def test_arrow_offsets_outside_the_text_are_refused(tmp_path):
    path = tmp_path / "a.arrow"
    good = pa.array([f"text {number}" for number in range(60)])
    _, offsets, data = good.buffers()
    wrong = bytearray(offsets.to_pybytes())
    wrong[4 * 30 : 4 * 31] = (2**30).to_bytes(4, "little")
    table = pa.table({"text": pa.StringArray.from_buffers(60, pa.py_buffer(bytes(wrong)), data)})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    # In another process, since what is not refused would end it.
    code = (
        "import sys; from superpose.data.readers import *; "
        "print(*[found.where for part in find_parts(Source(sys.argv[1])) for found in read_part(part)])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0
    assert "a.arrow, batch 0" in run.stdout
