"""Expected ids are places in the list of tokens, found by hand from BERT's rules."""

import json

import pytest

from mvlm_jax.data.text import TokenIds, Tokenizer
from mvlm_jax.errors import UserError

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "café", "cafe", "Dog", "dog", "##s", "犬", "##猫"]
TEXT = "The Dogs café 犬猫"


def folder(path, config=None, *, tokens=TOKENS, mark=""):
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text(mark + "\n".join(tokens) + "\n", encoding="utf-8")
    if config is not None:
        (path / "tokenizer_config.json").write_text(mark + json.dumps(config), encoding="utf-8")
    return path / "vocab.txt"


def ids(path) -> list[int]:
    [row] = Tokenizer.load(path, kind="bert").encode([TEXT], max_length=12)
    return [number for number in row.tolist() if number not in (0, 2, 3)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # the dog ##s cafe, each Chinese character a word of its own, the second one unknown
        ({"do_lower_case": True}, [6, 10, 11, 8, 12, 1]),
        ({"do_lower_case": True, "strip_accents": False}, [6, 10, 11, 7, 12, 1]),
        # As transformers, which strips accents with the capitals where nothing is said.
        ({"do_lower_case": False}, [5, 9, 11, 7, 12, 1]),
        ({"do_lower_case": False, "strip_accents": None}, [5, 9, 11, 7, 12, 1]),
        ({"do_lower_case": False, "strip_accents": True}, [5, 9, 11, 8, 12, 1]),
        ({"do_lower_case": False, "tokenize_chinese_chars": False}, [5, 9, 11, 7, 12, 13]),
    ],
)
def test_a_text_is_normalised_as_the_config_beside_the_vocabulary_says(tmp_path, config, expected):
    path = folder(tmp_path, config)
    assert ids(path) == expected
    Tokenizer.load(path, kind="bert").save(tmp_path / "tokenizer.json")
    assert ids(tmp_path / "tokenizer.json") == expected


def test_an_uncased_vocabulary_needs_no_config(tmp_path):
    lower = [token if token.startswith("[") else token.lower() + "_" * (token != token.lower()) for token in TOKENS]
    assert ids(folder(tmp_path, tokens=lower)) == [6, 10, 11, 8, 12, 1]


def test_a_byte_order_mark_is_no_part_of_the_first_token(tmp_path):
    path = folder(tmp_path, {"do_lower_case": False}, mark="\ufeff")
    tokenizer = Tokenizer.load(path, kind="bert")
    assert tokenizer.ids == TokenIds(pad=0, start=2, end=3, mask=4, unknown=1)
    assert ids(path) == [5, 9, 11, 7, 12, 1]
    (tmp_path / "marked.json").write_text("\ufeff" + tokenizer.to_json(), encoding="utf-8")
    assert ids(tmp_path / "marked.json") == [5, 9, 11, 7, 12, 1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has cased tokens such as 'The'; put"),
        ({"strip_accents": False}, "has cased tokens such as 'The'; put"),
        ({"do_lower_case": "no"}, 'has do_lower_case="no"; it must be true or false'),
        ({"do_lower_case": None}, "has do_lower_case=null; it must be true or false"),
        ([], "holds a list; a JSON object is needed; it says how vocab.txt is used"),
        ({"do_lower_case": False, "word_tokenizer_type": "mecab"}, 'only word_tokenizer_type="basic" can be read'),
        ({"do_lower_case": False, "do_basic_tokenize": False}, "only do_basic_tokenize=true can be read"),
    ],
)
def test_rules_that_are_missing_or_cannot_be_followed_are_refused_in_one_line(tmp_path, config, said):
    with pytest.raises(UserError) as caught:
        Tokenizer.load(folder(tmp_path, config), kind="bert")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_that_is_no_json_is_refused(tmp_path):
    path = folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json' cannot be read"):
        Tokenizer.load(path, kind="bert")


def test_a_tokenizer_that_contradicts_the_config_beside_it_is_refused(tmp_path):
    cased = Tokenizer.load(folder(tmp_path, {"do_lower_case": False}), kind="bert")
    cased.save(tmp_path / "tokenizer.json")
    for config, said in (
        ({"do_lower_case": True}, "has do_lower_case=false, but the tokenizer_config.json beside it true"),
        ({"strip_accents": True}, "has strip_accents=false, but"),
        ({"do_lower_case": False, "strip_accents": None, "model_max_length": 512}, None),
        ({}, None),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        if said is None:
            assert ids(tmp_path / "tokenizer.json") == [5, 9, 11, 7, 12, 1]
            continue
        with pytest.raises(UserError, match=said):
            Tokenizer.load(tmp_path / "tokenizer.json", kind="bert")
