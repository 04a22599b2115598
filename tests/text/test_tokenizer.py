import hashlib
import random
import subprocess
import sys
import unicodedata

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


def test_no_word_is_too_long_to_be_read():
    """WordPiece makes [UNK] of what has more than 100 letters: of DNA, and of what is written without spaces."""
    draw = random.Random(0)
    genes = ["".join(draw.choice("ACGT") for _ in range(length)) for length in (90, 100, 101, 150, 1000)] * 2
    tokenizer = train_tokenizer([*genes, "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 10], TokenizerConfig(vocab_size=300))
    unknown = tokenizer.backend.token_to_id("[UNK]")
    for text in (*genes, "ภาษาไทย" * 60):
        [ids] = tokenizer.encode([text])
        assert unknown not in ids and len(ids) > 1
        assert sum(count for _, count in tokenizer.words(text)) == len(ids)
        assert "".join(word for word, _ in tokenizer.words(text)) == text
    first, second = tokenizer.encode(["ACGT" * 50 + "A", "ACGT" * 50 + "C"])
    assert first != second
    assert len(tokenizer.encode(["acgt" * 25_000])[0]) >= 1000  # of 100,000 letters


PAIRS = {
    "German": ("musste", "müsste"),
    "French": ("pêche", "péché"),
    "Hindi": ("कल", "कुल"),
    "Thai": ("มา", "ม้า"),
    "Hebrew": ("סֵפֶר", "סָפַר"),
    "Arabic": ("كَتَبَ", "كُتِبَ"),
    "Japanese": ("ハハ", "パパ"),
    "Vietnamese": ("ma", "mạ"),
}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("language", PAIRS)
def test_accents_and_signs_count_unless_they_are_stripped(language, kind):
    texts = [word for pair in PAIRS.values() for word in pair] * 2
    first, second = PAIRS[language]
    size = {"kind": kind, "vocab_size": 400}
    for lowercase in (True, False):
        tokenizer = train_tokenizer(texts, TokenizerConfig(lowercase=lowercase, **size))
        assert tokenizer.encode([first]) != tokenizer.encode([second])
        assert tokenizer.encode([first]) == tokenizer.encode([unicodedata.normalize("NFD", first)])
        assert (tokenizer.encode(["MA"]) == tokenizer.encode(["ma"])) == lowercase
    stripped = train_tokenizer(texts, TokenizerConfig(strip_accents=True, **size))
    plain = lambda word: "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
    assert (stripped.encode([first]) == stripped.encode([second])) == (plain(first) == plain(second))


def test_line_breaks_and_tabs_end_words():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=300))
    assert tokenizer.encode(["quick\nfox\tdog\r\nthe"]) == tokenizer.encode(["quick fox dog the"])


@pytest.mark.parametrize("kind, least", [("wordpiece", "each letter of these texts"), ("bpe", "every byte")])
def test_a_vocabulary_that_cannot_hold_its_letters(kind, least):
    with pytest.raises(UserError, match=rf"--data.tokenizer.vocab-size 20 is too small: .* {least} take \d+"):
        train_tokenizer(TEXTS, TokenizerConfig(kind=kind, vocab_size=20))


def test_letters_that_stand_alone_take_one_place_each():
    """Chinese letters are words of their own: 3,000 of them fit into 4,000 tokens."""
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    tokenizer = train_tokenizer([letters], TokenizerConfig(vocab_size=4000))
    assert tokenizer.backend.token_to_id("[UNK]") not in tokenizer.encode([letters])[0]
    assert tokenizer.size == 3005


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_half_a_surrogate_pair_is_refused(kind):
    config = TokenizerConfig(kind=kind, vocab_size=320)
    with pytest.raises(UserError, match=r"list.csv, row 2 is not valid Unicode text \(character 3\)"):
        train_tokenizer(["fine", "no\udc80"], config, ["list.csv, row 1", "list.csv, row 2"])
    with pytest.raises(UserError, match="Text 1 is not valid Unicode text"):
        train_tokenizer(TEXTS, config).encode(["\ud800"])


def test_a_word_that_the_tokenizer_cannot_read(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="The tokenizer cannot read these texts: WordLevel error"):
        Tokenizer.load(tmp_path, extend=False).encode(["b"])


def test_tokenizers_of_older_runs_keep_working(tmp_path):
    """They have no frame of their own, strip accents, and read no word of more than 100 letters."""
    vocabulary = {
        token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"])
    }
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    for extend in (True, False):
        tokenizer = Tokenizer.load(tmp_path, extend=extend)
        assert [tokenizer.frame(ids) for ids in tokenizer.encode(["Äa", "a" * 101])] == [[2, 5, 6, 3], [2, 1, 3]]
        assert tokenizer.size == 7


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
