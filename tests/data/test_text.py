import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from examples import CAPTIONS

from mvlm_jax.data.text import TokenIds, Tokenizer, train_tokenizer
from mvlm_jax.errors import UserError

KINDS = ("roberta", "bert")
ODD = [
    "",
    "   ",
    "<mask> </s> [MASK] [SEP]",
    "\ud800 lone",
    "caf\u00e9 \U0001f600",
    "a\x00b",
    "a" * 10_000,
    "a b " * 2_500,
]


@pytest.fixture(scope="module", params=(*KINDS, "mpnet"))
def trained(request):
    return train_tokenizer(CAPTIONS, kind=request.param, vocab_size=400)


def test_special_ids_are_those_of_the_published_vocabularies():
    assert train_tokenizer(CAPTIONS, kind="roberta", vocab_size=400).ids == TokenIds(1, 0, 2, 4, 3)
    assert train_tokenizer(CAPTIONS, kind="bert", vocab_size=400).ids == TokenIds(0, 2, 3, 4, 1)
    assert train_tokenizer(CAPTIONS, kind="mpnet", vocab_size=400).ids == TokenIds(1, 0, 2, 4, 3)


def test_rows_are_start_tokens_end_padding(trained):
    ids = trained.encode(["two dogs run", ""], max_length=12)
    assert (ids.shape, ids.dtype) == ((2, 12), np.int32)
    assert ids[:, 0].tolist() == [trained.ids.start] * 2
    assert ids[1].tolist() == [trained.ids.start, trained.ids.end] + [trained.ids.pad] * 10
    end = ids[0].tolist().index(trained.ids.end)
    assert end >= 4 and (ids[0, end + 1 :] == trained.ids.pad).all()


def test_long_caption_is_cut_and_keeps_its_end(trained):
    long = "two dogs run " * 20
    ids = trained.encode([long], max_length=6)[0]
    assert ids[-1] == trained.ids.end
    np.testing.assert_array_equal(ids[:-1], trained.encode([long], max_length=40)[0, :5])


def test_decoding_gives_the_caption_back(trained):
    assert [trained.decode(row) for row in trained.encode(CAPTIONS, max_length=40)] == CAPTIONS


def test_a_text_that_continues_has_the_tokens_that_it_has_within_a_caption(trained):
    within, alone = trained.encode(["a red circle", ""], max_length=20)
    [after, empty] = trained.encode(["red circle", ""], max_length=19, continuing=True)
    np.testing.assert_array_equal(after, np.delete(within, 1))
    np.testing.assert_array_equal(empty, alone[:-1])
    assert trained.decode(after) == "red circle"


def test_odd_captions_never_crash_and_never_make_special_tokens(trained):
    start = time.perf_counter()
    ids = trained.encode(ODD, max_length=40)
    assert time.perf_counter() - start < 1
    special = {trained.ids.start, trained.ids.end, trained.ids.mask}
    for row in ids:
        end = row.tolist().index(trained.ids.end)
        assert not special & set(row[1:end].tolist())
    assert ids.max() < trained.vocab_size


def test_empty_batch_has_no_rows(trained):
    assert trained.encode([], max_length=7).shape == (0, 7)


def test_saving_and_pickling_change_nothing(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    for copy in (
        Tokenizer.load(tmp_path / "tokenizer.json", kind=trained.kind),
        pickle.loads(pickle.dumps(trained)),
    ):
        np.testing.assert_array_equal(
            copy.encode(CAPTIONS + ODD, max_length=20), trained.encode(CAPTIONS + ODD, max_length=20)
        )
        assert (copy.ids, copy.vocab_size) == (trained.ids, trained.vocab_size)
        copy.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "tokenizer.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_in_every_process(kind, tmp_path):
    program = (
        "import sys; from mvlm_jax.data.text import train_tokenizer; "
        "train_tokenizer([f'word{i % 17} thing{i % 5} {i}' for i in range(200)], kind=sys.argv[1], vocab_size=330)"
        ".save(sys.argv[2])"
    )
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        subprocess.run([sys.executable, "-c", program, kind, str(path)], check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_trained_tokenizer_stays_within_its_size():
    assert train_tokenizer(["abcdefgh " * 5] * 9, kind="roberta", vocab_size=270).vocab_size <= 270
    with pytest.raises(UserError, match=r"vocab_size=100 must be at least 261"):
        train_tokenizer(CAPTIONS, kind="roberta", vocab_size=100)


def test_bert_vocabulary_file_splits_words_into_pieces(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##s", "run", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = Tokenizer.load(tmp_path / "vocab.txt", kind="bert")
    assert tokenizer.ids == TokenIds(pad=0, start=2, end=3, mask=4, unknown=1)
    assert tokenizer.encode(["DOGS run zebra!"], max_length=10)[0].tolist() == [2, 5, 6, 7, 1, 8, 3, 0, 0, 0]
    assert tokenizer.decode([2, 5, 6, 7, 3, 0]) == "dogs run"


def test_the_vocabulary_of_mpnet_has_special_tokens_of_its_own(tmp_path):
    words = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "dogs", "run", "##s", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = Tokenizer.load(tmp_path / "vocab.txt", kind="mpnet")
    assert tokenizer.ids == TokenIds(pad=1, start=0, end=2, mask=8, unknown=4)
    assert tokenizer.encode(["DOGS runs zebra"], max_length=8)[0].tolist() == [0, 5, 6, 7, 4, 2, 1, 1]
    (tmp_path / "vocab.txt").write_text("\n".join(["<pad>", "<s>", *words[2:]]) + "\n")
    assert "has <pad> as token 0; MPNet needs it as token 1" in refusal(tmp_path / "vocab.txt", kind="mpnet")


def refusal(path, kind="roberta") -> str:
    with pytest.raises(UserError) as caught:
        Tokenizer.load(path, kind=kind)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_wrong_files_are_refused_in_one_line(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{")
    assert "is not a tokenizer.json" in refusal(tmp_path / "broken.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "binary.json")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert "not of 'roberta'" in refusal(tmp_path / "vocab.txt")
    assert "has no [CLS], [SEP], [MASK]" in refusal(tmp_path / "vocab.txt", kind="bert")
    (tmp_path / "twice.txt").write_text("a\na\n")
    assert "twice" in refusal(tmp_path / "twice.txt", kind="bert")
    train_tokenizer(CAPTIONS, kind="bert", vocab_size=90).save(tmp_path / "bert.json")
    assert "<s>" in refusal(tmp_path / "bert.json")
    assert "not one of roberta, bert" in refusal(tmp_path / "bert.json", kind="gpt")


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match="no caption"):
        train_tokenizer(["", "  "], kind="roberta", vocab_size=300)
