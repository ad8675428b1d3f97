import pytest

from superpose.data.sources import PYTHON_SOURCES, collect
from superpose.errors import UserError


def write_corpus(folder, count=300):
    for number in range(count):
        path = folder / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"document {number}\n" * 5)


def collect_small(source, **changes):
    return collect(str(source), **({"max_bytes": 10**9, "val_fraction": 0.2, "val_bytes": 10**9} | changes))


def texts(side):
    return [document.text for document in side]


def test_every_document_is_on_one_side_only(tmp_path):
    write_corpus(tmp_path)
    corpus = collect_small(tmp_path)
    train, val = set(texts(corpus.train)), set(texts(corpus.val))
    assert len(train) + len(val) == 300
    assert not train & val
    assert 30 < len(val) < 90


def test_copies_and_reformatted_copies_are_one_document(tmp_path):
    write_corpus(tmp_path)
    before = collect_small(tmp_path)
    for number in range(50):
        (tmp_path / f"copy{number}.txt").write_text(f"document  {number}\r\n" * 5)
    after = collect_small(tmp_path)
    assert after.repeated == 50
    for side in ("train", "val"):
        assert [document.fingerprint for document in getattr(after, side)] == [
            document.fingerprint for document in getattr(before, side)
        ]


def test_order_and_sides_do_not_depend_on_paths(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name)
    for path in list((tmp_path / "b" / "part0").iterdir()):
        path.rename(tmp_path / "b" / f"moved{path.name}")
    a, b = collect_small(tmp_path / "a"), collect_small(tmp_path / "b")
    assert texts(a.train) == texts(b.train)
    assert texts(a.val) == texts(b.val)


def test_a_growing_corpus_moves_no_document_to_the_other_side(tmp_path):
    write_corpus(tmp_path, 200)
    before = collect_small(tmp_path)
    write_corpus(tmp_path, 400)
    after = collect_small(tmp_path)
    assert set(texts(before.val)) <= set(texts(after.val))
    assert set(texts(before.train)) <= set(texts(after.train))


def test_sizes_are_capped_and_what_is_held_out_is_never_trained_on(tmp_path):
    write_corpus(tmp_path)
    whole, capped = collect_small(tmp_path), collect_small(tmp_path, max_bytes=2000, val_bytes=1000)
    for side, limit in ((capped.train, 2000), (capped.val, 1000)):
        assert 0 < sum(document.size for document in side) <= limit
    assert not set(texts(capped.train)) & set(texts(whole.val))


def test_one_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    path = tmp_path / "book.txt"
    text = "".join(f"paragraph {number}, line one\nline two\n\n" for number in range(20_000))
    path.write_text(text)
    corpus = collect_small(path)
    pieces = texts(corpus.train) + texts(corpus.val)
    assert len(pieces) > 20
    assert all(piece.startswith("paragraph") and piece.endswith("\n\n") for piece in pieces)
    assert sum(map(len, pieces)) == len(text)


def test_files_that_are_not_text_are_counted_and_left_out(tmp_path):
    write_corpus(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "zeros").write_bytes(b"text\0text")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "empty").write_text("")
    corpus = collect_small(tmp_path)
    assert corpus.unreadable == 2
    assert not any("secret" in text for text in texts(corpus.train) + texts(corpus.val))


def test_the_default_corpus_is_python():
    corpus = collect(PYTHON_SOURCES, max_bytes=10**6, val_fraction=0.02, val_bytes=10**5)
    assert 900_000 < sum(document.size for document in corpus.train) <= 10**6
    assert sum("import " in text for text in texts(corpus.train)) > len(corpus.train) / 2


@pytest.mark.parametrize("content", [None, "", "just one line"])
def test_too_little_text_is_one_clear_sentence(tmp_path, content):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="give a"):
        collect_small(path)
