import pytest
from tokenizers import Tokenizer

from superpose.data import store as store_module
from superpose.data.sources import collect
from superpose.data.store import TokenStore, prepare
from superpose.errors import UserError


def decoded(store, side):
    tokenizer = Tokenizer.from_file(str(store.tokenizer_path / "tokenizer.json"))
    split = getattr(store, side)
    for start, stop in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        *ids, last = split.tokens.read(int(start), int(stop - start)).tolist()
        assert last == store.end_of_text
        yield tokenizer.decode(ids)


@pytest.mark.parametrize("side", ["train", "val"])
def test_what_goes_in_comes_out(store, data_args, side):
    corpus = collect(data_args.corpus, 64 * 10**6, data_args.val_fraction, 20_000)
    expected = [document.text for document in getattr(corpus, side)]
    assert list(decoded(store, side)) == expected
    assert getattr(store, side).bytes == sum(len(text.encode()) for text in expected)
    assert getattr(store, side).documents == len(expected)


def test_text_cannot_forge_the_end_of_a_document(tmp_path, data_args):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n} <|endoftext|> more\n\n" for n in range(20_000)))
    store = prepare(data_args.model_copy(update={"corpus": str(path)}))
    for split in (store.train, store.val):
        assert (split.tokens.read(0, len(split.tokens)) == store.end_of_text).sum() == split.documents


def test_the_same_text_is_prepared_once(store, data_args, monkeypatch):
    monkeypatch.setattr(store_module, "write_store", None)
    assert prepare(data_args).path == store.path


def test_text_that_differs_in_white_space_alone_is_other_text(tmp_path, data_args):
    path = tmp_path / "text.txt"
    args = data_args.model_copy(update={"corpus": str(path), "val_fraction": 0.4})
    stores = []
    for space in (" ", "\t"):  # of one length, so that the pieces are cut alike
        path.write_text("".join(f"line{space}{n} of the text\n\n" for n in range(20_000)))
        stores.append(prepare(args))
    assert stores[0].path != stores[1].path
    assert "line\t" in next(decoded(stores[1], "train"))


def test_ids_fit_the_vocabulary_and_take_two_bytes(store):
    assert store.manifest["dtype"] == "<u2"
    assert int(store.train.tokens.read(0, len(store.train.tokens)).max()) < store.vocab_size == 300


def test_an_interrupted_preparation_leaves_nothing(data_args, cache, monkeypatch):
    args = data_args.model_copy(update={"vocab_size": 301})

    def interrupt(what, share):
        if what == "tokenizing train":
            raise KeyboardInterrupt

    before = set((cache / "stores").iterdir())
    with pytest.raises(KeyboardInterrupt):
        prepare(args, interrupt)
    assert set((cache / "stores").iterdir()) == before


@pytest.mark.parametrize("name", ["train.tokens", "val.tokens", "train.offsets", "manifest.json"])
def test_a_broken_store_is_named_and_never_opened(data_args, name):
    store = prepare(data_args.model_copy(update={"vocab_size": 302}))
    whole = (store.path / name).read_bytes()
    try:
        (store.path / name).write_bytes(whole[:-3])
        with pytest.raises(UserError, match=name):
            TokenStore.open(store.path)
    finally:
        (store.path / name).write_bytes(whole)


def test_an_altered_store_is_found_by_its_checksums(data_args):
    store = prepare(data_args.model_copy(update={"vocab_size": 303}))
    store.verify()
    path = store.path / "val.tokens"
    whole = path.read_bytes()
    path.write_bytes(b"\x01\x00" + whole[2:])
    with pytest.raises(UserError, match=r"val\.tokens was altered"):
        store.verify()
    path.write_bytes(whole)


def test_a_store_of_another_version_is_refused(data_args):
    store = prepare(data_args.model_copy(update={"vocab_size": 304}))
    path = store.path / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="format 2"):
        TokenStore.open(store.path)
    path.write_text(text)
