from hypothesis import given
from hypothesis import strategies as st

from superpose.data.sources import Document
from superpose.data.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer

documents = [Document(str(number), f"def name{number}(value):\n    return value * {number}\n") for number in range(200)]
tokenizer = train_tokenizer(documents, 320)


@given(st.text())
def test_any_text_comes_back_exactly(text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_training_is_deterministic():
    assert train_tokenizer(documents, 320).to_str() == tokenizer.to_str()


def test_transformers_loads_what_is_saved(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "def other(value):\n    return  value , 'é'\n"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token == END_OF_TEXT
