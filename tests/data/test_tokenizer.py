import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from superpose.data.prepare import Preparation, prepare_store
from superpose.data.readers import Source
from superpose.data.tokenizer import (
    BYTES,
    END_OF_TEXT,
    difference,
    load_tokenizer,
    save_tokenizer,
    tokenizer_identity,
    train_tokenizer,
)
from superpose.errors import UserError
from superpose.models.load import text_tokenizer_of

texts = [f"def name{number}(value):\n    return value * {number}\n" for number in range(200)]
trained = train_tokenizer(texts, 320, ["<|user|>"])
plain_bytes = load_tokenizer(BYTES)


@given(st.text(), st.sampled_from([trained, plain_bytes]))
def test_any_text_comes_back_exactly(text, made):
    ids = made.tokenizer.encode(text, add_special_tokens=False).ids
    assert made.tokenizer.decode(ids) == text
    assert max(ids, default=0) < made.vocab_size


@given(st.text())
def test_bytes_are_bytes(text):
    ids = plain_bytes.tokenizer.encode(text, add_special_tokens=False).ids
    assert plain_bytes.byte_ids[list(text.encode())].tolist() == ids
    assert plain_bytes.vocab_size == 257
    assert trained.byte_ids is None


some_text = (
    st.text(st.characters(max_codepoint=127)) | st.text("ab' \t\n\r<|>1_s!") | st.text("aé\u3000\x85' \t\n\r\n\n1!")
)


@given(some_text)
def test_word_by_word_is_the_same(text):
    made = train_tokenizer(texts, 320, ["<|user|>"])
    for whole in (text, f"it's {text}'ll  <|user|>{text} \n\n  def"):
        assert made.words.encode(whole).tolist() == made.tokenizer.encode(whole, add_special_tokens=False).ids


def test_words_are_told_apart_only_where_the_tokenizer_does():
    made = train_tokenizer(texts, 320)
    made.tokenizer.add_tokens(["def name"])
    assert made.words is None
    prefixed = train_tokenizer(texts, 320)
    prefixed.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert prefixed.words is None


def test_training_is_deterministic():
    assert train_tokenizer(texts, 320, ["<|user|>"]).tokenizer.to_str() == trained.tokenizer.to_str()


def test_too_few_entries_are_refused():
    with pytest.raises(ValueError, match="vocab_size is 257"):
        train_tokenizer(texts, 257, ["<|user|>"])


def test_transformers_loads_what_is_saved(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(trained, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "def other(value):\n    return  value , 'é'\n"
    assert loaded(text)["input_ids"] == trained.tokenizer.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token == END_OF_TEXT


def test_what_is_saved_is_loaded_and_saved_again_unchanged(tmp_path):
    save_tokenizer(trained, tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    loaded = load_tokenizer(str(tmp_path / "a"))
    assert loaded.end_of_text == trained.end_of_text
    assert loaded.vocab_size == 320
    save_tokenizer(loaded, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_the_end_of_text_is_explicit(tmp_path):
    file = tmp_path / "tokenizer.json"
    trained.tokenizer.save(str(file))
    with pytest.raises(UserError, match=r"does not say which token ends a document.*<\|user\|>"):
        load_tokenizer(str(file))
    assert load_tokenizer(str(file), "<|user|>").end_of_text == trained.tokenizer.token_to_id("<|user|>")
    with pytest.raises(UserError, match="no token 'end'"):
        load_tokenizer(str(file), "end")


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
def test_what_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(str(tmp_path), END_OF_TEXT)
    with pytest.raises(UserError, match="is not there"):
        load_tokenizer(str(tmp_path / "none"))


def test_half_a_character_ends_no_document(tmp_path):
    save_tokenizer(trained, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(UserError, match=r"no token '\\ud800' to end documents"):
        load_tokenizer(str(tmp_path))


def bytes_merged(special, template):
    """As most are: byte-level, with an end of text that may be flagged special or not, and a template around text."""
    built = Tokenizer.from_str(train_tokenizer(texts, 300).tokenizer.to_str())
    built.add_tokens([AddedToken("</s>", special=special), AddedToken("<tool>", special=False)])
    if template:
        both = processors.TemplateProcessing(
            single="</s> $A </s>", special_tokens=[("</s>", built.token_to_id("</s>"))]
        )
        built.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), both])
    return built


def sentencepiece():
    """As Llama 2 has it: blanks are characters, one is put before a text, and what is unknown is written in bytes."""
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abdefhinrtx<>/s."]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "\u2581"), ("d", "e"), ("\u2581", "de")]
    vocab += [first + second for first, second in merges]
    ids = {token: number for number, token in enumerate(vocab)}
    built = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(parts)
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    built.add_special_tokens(["<unk>", "<s>", "</s>"])
    return built


def whole_words():
    """Its model itself, not only its list of added tokens, makes the end of text of a word."""
    pieces = [
        ("<unk>", -9.0),
        ("</s>", 0.0),
        *((character, -5.0) for character in "\u2581abcdefhinrstx</>"),
        ("</", -4.0),
    ]
    built = Tokenizer(models.Unigram(pieces, unk_id=0))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    return built


KINDS = {
    "plain": (bytes_merged(True, False), "PreTrainedTokenizerFast"),
    "not-special": (bytes_merged(False, False), "GPT2Tokenizer"),
    "template": (bytes_merged(True, True), "PreTrainedTokenizerFast"),
    "not-special-template": (bytes_merged(False, True), "PreTrainedTokenizerFast"),
    "sentencepiece": (sentencepiece(), "LlamaTokenizer"),
    "words": (whole_words(), "PreTrainedTokenizerFast"),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """By name: the directory of each kind, what it was loaded as, what was saved of that, and transformers' reading."""
    from transformers import AutoTokenizer

    made = {}
    for name, (built, kind) in KINDS.items():
        own, saved = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp(name)
        built.save(str(own / "tokenizer.json"))
        settings = {"tokenizer_class": kind, "eos_token": "</s>", "add_bos_token": name == "sentencepiece"}
        (own / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = load_tokenizer(str(own))
        save_tokenizer(tokenizer, saved)
        made[name] = (own, tokenizer, saved, AutoTokenizer.from_pretrained(saved), text_tokenizer_of(own))
    return made


spelled = st.lists(
    st.sampled_from(["</s>", "<s>", "<tool>", "<", "/", "s", ">", " ", "the", "de", "\n", "é", "\u2581"])
)


@pytest.mark.parametrize("name", KINDS)
@given(st.text() | spelled.map("".join))
def test_all_read_the_same_ids(kinds, name, text):
    """What is saved, and what generates and evaluates from either directory, reads as training does."""
    _, tokenizer, _, saved, reader = kinds[name]
    (ids,) = tokenizer.encode([text])
    assert tokenizer.end_of_text not in ids
    if name == "words" and "</s>" in text:
        return  # transformers leaves the end of text in
    assert saved(text, split_special_tokens=True)["input_ids"] == ids.tolist()
    assert reader(text)["input_ids"] == reader.encode(text) == ids.tolist()
    if "<s>" not in text and "</s>" not in text:
        assert saved(text)["input_ids"] == ids.tolist()
    if name not in ("sentencepiece", "words"):
        assert tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_leading_blanks_are_those_of_the_file(kinds):
    """A class of transformers that has rules of its own reads one blank less."""
    own, tokenizer, saved, _, _ = kinds["sentencepiece"]
    blanks = [tokenizer.tokenizer.id_to_token(number) for number in tokenizer.encode(["  the"])[0]]
    assert blanks == ["\u2581\u2581", "\u2581the"]
    assert "LlamaTokenizer, which AutoTokenizer takes, reads ''" in difference(tokenizer, own)
    assert difference(tokenizer, saved) is None
    assert json.loads((saved / "tokenizer_config.json").read_text())["add_bos_token"] is False


def test_a_template_makes_no_other_tokenizer(kinds):
    for name in ("template", "sentencepiece"):
        own, _, saved, _, _ = kinds[name]
        assert (own / "tokenizer.json").read_bytes() != (saved / "tokenizer.json").read_bytes()
        assert tokenizer_identity(own / "tokenizer.json") == tokenizer_identity(saved / "tokenizer.json")
    assert len({tokenizer_identity(kinds[name][0] / "tokenizer.json") for name in ("plain", "sentencepiece")}) == 2


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr("superpose.data.tokenizer._plain", lambda directory, end_of_text: None)
    tokenizer = kinds["sentencepiece"][1]
    with pytest.raises(UserError, match=r"LlamaTokenizer, which AutoTokenizer takes, .*json alone"):
        save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "AutoTokenizer cannot load it" in difference(tokenizer, tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_no_text_ends_a_document(kinds, tmp_path, name):
    """As many ends as documents, whatever these spell out; the rest is what `encode` makes of them."""
    documents = [f"{number} the</s>def </s> the </s" for number in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    store = prepare_store(
        Preparation((Source(str(tmp_path / "a.jsonl")),), tokenizer=str(kinds[name][0]), val_fraction=0.4),
        tmp_path / "store",
        processes=1,
    )
    stored = []
    for split in (store.train, store.val):
        tokens = split.tokens.read(0, len(split.tokens))
        assert (tokens == store.end_of_text).sum() == split.documents
        stored += [tokens[start:stop].tolist() for start, stop in pairwise(split.offsets)]
    expected = [[*ids.tolist(), store.end_of_text] for ids in kinds[name][1].encode(documents)]
    assert sorted(stored) == sorted(expected)


def test_another_end_of_text_is_the_one_that_is_saved(kinds, tmp_path):
    own = kinds["sentencepiece"][0]
    save_tokenizer(load_tokenizer(str(own), "<s>"), tmp_path)
    assert load_tokenizer(str(tmp_path)).end_of_text == text_tokenizer_of(tmp_path).eos_token_id == 1


def test_an_end_of_text_that_text_is_written_with_is_refused(tmp_path):
    trained.tokenizer.save(str(tmp_path / "tokenizer.json"))
    newline = load_tokenizer(str(tmp_path / "tokenizer.json"), "\u010a")
    assert newline.encode(["a b"])[0].tolist() == trained.encode(["a b"])[0].tolist()
    with pytest.raises(UserError, match="writes text with '\u010a', which is to end documents; name another"):
        newline.encode(["a b", "a\nb"])


def test_settings_that_json_does_not_have_are_refused(tmp_path):
    save_tokenizer(load_tokenizer("bytes"), tmp_path / "made")
    (tmp_path / "made" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "model_max_length": NaN}')
    with pytest.raises(UserError, match=r"tokenizer_config\.json of the tokenizer holds NaN or an infinity"):
        save_tokenizer(load_tokenizer(str(tmp_path / "made")), tmp_path / "saved")
