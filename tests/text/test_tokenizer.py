import hashlib
import subprocess
import sys

import pytest
import tokenizers

from core import UserError
from text.corpora import read_docstrings
from text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

TEXTS = ["The quick brown fox", "jumps over the lazy dog,", "and the naïve café's fox jumps again."] * 3


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_train_save_and_load(kind, tmp_path):
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(kind=kind, vocab_size=400, lowercase=False))
    assert len({tokenizer.pad, tokenizer.first, tokenizer.last, tokenizer.mask}) == 4
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.encode(TEXTS) == tokenizer.encode(TEXTS) and again.size == tokenizer.size
        assert again.mask == tokenizer.mask
    assert max(max(ids) for ids in tokenizer.encode(TEXTS)) < tokenizer.size
    assert tokenizer.encode([f"the {tokenizer.token(tokenizer.mask)} fox"])[0].count(tokenizer.mask) == 1
    assert tokenizer.frame([7, 8]) == [tokenizer.first, 7, 8, tokenizer.last]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_words_of_a_text_take_all_its_tokens(kind):
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(kind=kind, vocab_size=320))
    text = "The naïve unseen fox-dog jumps, 'again'."
    words = tokenizer.words(text)
    assert sum(count for _, count in words) == len(tokenizer.encode([text])[0])
    assert "".join(word for word, _ in words) == text.replace(" ", "")
    assert ("naïve", 1) in words and max(count for _, count in words) > 1


def test_byte_level_tokens_lose_nothing():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(kind="bpe", vocab_size=300, lowercase=False))
    text = "日本語 and \U0001f600 and naïve"
    assert tokenizer.backend.decode(tokenizer.encode([text])[0]).strip() == text


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_the_same_in_every_process(kind):
    code = (
        "import hashlib; from text.corpora import read_docstrings; from text.tokenizer import *;"
        "texts = [text.text for text in read_docstrings().train[:600]];"
        f"tokenizer = train_tokenizer(texts, TokenizerConfig(kind={kind!r}, vocab_size=1500));"
        "print(hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest())"
    )
    texts = [text.text for text in read_docstrings().train[:600]]
    here = train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=1500))
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(here.backend.to_str().encode()).hexdigest()


def test_a_loaded_tokenizers_own_special_tokens(tmp_path):
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(names[:5])
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    backend.enable_padding(length=20)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.first, tokenizer.pad, tokenizer.last, tokenizer.mask, tokenizer.size) == (0, 1, 2, 4, 7)
    assert tokenizer.encode(["a b <mask> b a"]) == [[5, 6, 4, 6, 5]]


def test_special_tokens_that_are_missing_are_added(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert sorted([tokenizer.pad, tokenizer.first, tokenizer.last, tokenizer.mask]) == [2, 3, 4, 5]
    assert tokenizer.size == 6


@pytest.mark.parametrize("content", ["hello", "{}", '{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json: .+"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="There is no tokenizer"):
        Tokenizer.load(tmp_path / "other.json")
