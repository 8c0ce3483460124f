"""Which tokenizers may stand beside published text weights."""

import json

import numpy as np
import pytest
from sources import GOLDEN, folder_of
from tiny import recipe

from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.transformers_folder import write_tokenizer
from mvlm_jax.interop.vocabulary import check_tokenizer
from mvlm_jax.tasks.tokenizer import open_tokenizer

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "dog"]
CAPTIONS = ["a red circle", "two blue squares above a red disc"]


def bert(folder, *, cased):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    return Tokenizer.load(folder / "vocab.txt", kind="bert")


def altered(tokenizer, path, change):
    values = json.loads(tokenizer.to_json())
    change(values)
    path.write_text(json.dumps(values))
    return Tokenizer.load(path, kind=tokenizer.kind)


def test_the_same_vocabulary_with_another_treatment_of_capitals_is_refused(tmp_path):
    cased, uncased = bert(tmp_path / "cased", cased=True), bert(tmp_path / "uncased", cased=False)
    check_tokenizer(cased, weights=tmp_path / "cased", vocab_size=8)
    with pytest.raises(
        UserError, match=r"another normalizer.lowercase \(true, not false\); leave config.text.tokenizer"
    ):
        check_tokenizer(uncased, weights=tmp_path / "cased", vocab_size=8)
    with pytest.raises(UserError, match=r"another normalizer.lowercase \(false, not true\)"):
        check_tokenizer(cased, weights=tmp_path / "uncased", vocab_size=8)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("absent", "bert", "there is no .*absent; give a .safetensors file or a folder that holds one"),
        (
            "dinov2",
            "bert",
            "is a 'dinov2' by its config.json; .*; an image encoder is given as --config.init_from.image",
        ),
        ("with a tokenizer", "roberta", "is a 'bert' by its config.json; .*; give --config.text_encoder.kind=bert"),
        ("bert", "bert", "has no tokenizer.json or vocab.txt; name the tokenizer of these weights in config.text.tok"),
    ],
)
def test_weights_that_do_not_fit_are_named_before_their_tokenizer(name, kind, said, tmp_path):
    folder = GOLDEN / name
    if name == "with a tokenizer":
        folder = folder_of(tmp_path / "folder", "bert")
        train_tokenizer(CAPTIONS, kind="bert", vocab_size=48).save(folder / "tokenizer.json")
    config = recipe("demo")
    config.text_encoder.kind, config.init_from.text = kind, str(folder)
    with pytest.raises(UserError, match=said):
        open_tokenizer(config, workdir=None, texts=list)


@pytest.mark.parametrize(
    ("kind", "part", "change", "said"),
    [
        ("bert", "normalizer", {"strip_accents": False}, r"normalizer.strip_accents \(false, not true\)"),
        ("bert", "pre_tokenizer", {"type": "Whitespace"}, 'pre_tokenizer.type \\("Whitespace", not "BertPreTokenizer"'),
        ("bert", "model", {"max_input_chars_per_word": 7}, r"model.max_input_chars_per_word \(7, not 100\)"),
        ("roberta", "pre_tokenizer", {"add_prefix_space": True}, r"pre_tokenizer.add_prefix_space \(true, not false\)"),
        ("roberta", "model", {"merges": []}, r"another model.merges; leave"),
        # These change no token, or say the same in other words.
        ("bert", "normalizer", {"strip_accents": True}, None),
        ("roberta", "pre_tokenizer", {"trim_offsets": False}, None),
        ("roberta", "model", {"unk_token": "<unk>", "continuing_subword_prefix": ""}, None),
    ],
)
def test_every_rule_that_changes_tokens_is_compared_and_no_other(tmp_path, kind, part, change, said):
    published = train_tokenizer(CAPTIONS, kind=kind, vocab_size=300)
    published.save(tmp_path / "tokenizer.json")
    ours = altered(published, tmp_path / "ours.json", lambda values: values[part].update(change))
    if said is None:
        check_tokenizer(ours, weights=tmp_path, vocab_size=published.vocab_size)
        texts = [*CAPTIONS, "a caf\u00e9 \U0001f600"]
        np.testing.assert_array_equal(ours.encode(texts, max_length=40), published.encode(texts, max_length=40))
        return
    with pytest.raises(UserError, match=said) as caught:
        check_tokenizer(ours, weights=tmp_path, vocab_size=published.vocab_size)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("cased", [True, False])
def test_an_export_says_how_it_treats_capitals_and_is_read_back_with_its_tokens(tmp_path, cased):
    tokenizer = bert(tmp_path / "published", cased=cased)
    folder = tmp_path / "export"
    folder.mkdir()
    write_tokenizer(folder, tokenizer, max_length=16)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    stated = {name: config[name] for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    assert stated == {"do_lower_case": not cased, "strip_accents": None, "tokenize_chinese_chars": True}
    again = Tokenizer.load(folder / "tokenizer.json", kind="bert")
    assert again.encode(["The dog"], max_length=5)[0].tolist() == [2, 5 if cased else 6, 7, 3, 0]
    check_tokenizer(tokenizer, weights=folder, vocab_size=8)


def test_an_export_of_a_byte_level_tokenizer_says_nothing_of_capitals(tmp_path):
    write_tokenizer(tmp_path, train_tokenizer(CAPTIONS, kind="roberta", vocab_size=300), max_length=16)
    assert "do_lower_case" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
