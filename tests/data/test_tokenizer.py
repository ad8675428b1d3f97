import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from superpose.data.tokenizer import BYTES, END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer
from superpose.errors import UserError

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


ascii_text = st.text(st.characters(max_codepoint=127)) | st.text("ab' \t\n\r<|>1_s!")


@given(ascii_text)
def test_word_by_word_is_the_same(text):
    made = train_tokenizer(texts, 320, ["<|user|>"])
    made.tokenizer.encode_special_tokens = True
    for whole in (text, f"it's {text}'ll  <|user|>{text} \n\n  def"):
        assert made.words.encode(whole).tolist() == made.tokenizer.encode(whole, add_special_tokens=False).ids


def test_words_are_told_apart_only_where_the_tokenizer_does():
    assert trained.words is None  # it would take special tokens out of the text first
    made = train_tokenizer(texts, 320)
    made.tokenizer.encode_special_tokens = True
    made.tokenizer.add_tokens(["def name"])
    assert made.words is None
    prefixed = train_tokenizer(texts, 320)
    prefixed.tokenizer.encode_special_tokens = True
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
