"""Token ids equal those of transformers' AutoTokenizer, frame included, on texts of many scripts."""

import contextlib
import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from text_tokenizers import (
    make_albert,
    make_bert,
    make_distilbert,
    make_modernbert,
    make_mpnet,
    make_roberta,
    make_xlmr,
    odd_texts,
)
from tokenizers import models, pre_tokenizers, processors

from core import UserError
from text.tokenizer import Tokenizer

BERT_KINDS = {
    f"bert, lower {lower}, accents {strip}, Chinese {chinese}": (
        lambda lower=lower, strip=strip, chinese=chinese: make_bert(
            lower, strip_accents=strip, tokenize_chinese_chars=chinese
        ),
        "Bert",
    )
    for lower in (True, False)
    for strip in (None, True, False)
    for chinese in (True, False)
}
KINDS = BERT_KINDS | {
    "distilbert": (make_distilbert, "DistilBert"),
    "roberta": (make_roberta, "Roberta"),
    "roberta, prefix space": (lambda: make_roberta(add_prefix_space=True), "Roberta"),
    "albert": (make_albert, "Albert"),
    "albert, accents and case": (lambda: make_albert(keep_accents=True, do_lower_case=False), "Albert"),
    "modernbert": (make_modernbert, "ModernBert"),
    "xlm-roberta": (make_xlmr, "XLMRoberta"),
    "camembert, a unigram model": (make_xlmr, "Camembert"),
    "electra": (make_bert, "Electra"),
    "mpnet": (make_mpnet, "MPNet"),
}


def ids_of(tokenizer, texts):
    return [tokenizer.frame(ids) for ids in tokenizer.encode(texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_are_those_of_transformers(kind, tmp_path):
    make, family = KINDS[kind]
    make().save_pretrained(tmp_path)
    getattr(transformers, f"{family}Config")().save_pretrained(tmp_path)
    stock, texts = transformers.AutoTokenizer.from_pretrained(tmp_path), odd_texts()
    ours = Tokenizer.load(tmp_path, extend=False)
    expected = [stock(text).input_ids for text in texts]
    assert ids_of(ours, texts) == expected
    ours.save(tmp_path / "again.json")
    again = Tokenizer.load(tmp_path / "again.json", extend=False)
    for tokenizer in (ours, again):
        assert ids_of(tokenizer, texts) == expected
        assert (tokenizer.pad, tokenizer.mask) == (stock.pad_token_id, stock.mask_token_id)
        assert tokenizer.size == len(stock)


def word_level(words: str, **more) -> tokenizers.Tokenizer:
    """A tokenizer whose vocabulary are these words, the ones in brackets special."""
    names = words.split()
    unknown = next((name for name in names if name in ("[UNK]", "<unk>")), None)
    ids = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, **({"unk_token": unknown} if unknown else {})))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([name for name in names if name[0] in "[<"])
    return backend


FRAMES = {
    "two": ("[CLS] $A [SEP]", [1, 6, 7, 2]),
    "four": ("[CLS] [LANG] $A [SEP] [CLS]", [1, 5, 6, 7, 2, 1]),
    "in front alone": ("[CLS] $A", [1, 6, 7]),
    "behind alone": ("$A [SEP]", [6, 7, 2]),
    "none": ("$A", [6, 7]),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_the_frame_is_the_tokenizers_own(frame, tmp_path):
    backend = word_level("[PAD] [CLS] [SEP] [UNK] [MASK] [LANG] a b")
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]", "[LANG]")]
    backend.post_processor = processors.TemplateProcessing(single=FRAMES[frame][0], special_tokens=ends)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, extend=False)
    assert ids_of(tokenizer, ["a b"]) == [FRAMES[frame][1]] == [backend.encode("a b").ids]
    assert tokenizer.room(9) == 9 - len(FRAMES[frame][1]) + 2
    if frame == "four":
        with pytest.raises(UserError, match="A model of 4 tokens has no room for text: 4 of them are special tokens"):
            tokenizer.room(4)


@pytest.mark.parametrize("make", [processors.BertProcessing, processors.RobertaProcessing])
def test_frames_of_other_kinds(make, tmp_path):
    backend = word_level("<s> </s> <unk> a")
    backend.post_processor = processors.Sequence([processors.ByteLevel(), make(("</s>", 1), ("<s>", 0))])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert ids_of(Tokenizer.load(tmp_path), ["a a"]) == [[0, 3, 3, 1]]


def test_a_tokenizer_without_a_frame_is_given_one_only_where_it_is_to_be_trained_with(tmp_path):
    backend = word_level("<unk> a")
    backend.post_processor = processors.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    fixed, extended = (Tokenizer.load(tmp_path, extend=extend) for extend in (False, True))
    assert ids_of(fixed, ["a"]) == [[1]] and fixed.mask is None and fixed.size == 2 and fixed.pad == 0
    assert ids_of(extended, ["a"]) == [[extended.first, 1, extended.last]] and extended.size == 6


def test_the_tokenizers_own_names_come_before_words_of_a_text(tmp_path):
    """A vocabulary may hold [MASK] as a mere word, of texts about tokenizers."""
    ids = {name: number for number, name in enumerate(["[MASK]", "[PAD]", "[CLS]", "<s>", "<pad>", "</s>", "<unk>"])}
    backend = tokenizers.Tokenizer(models.WordLevel(ids | {"<mask>": 7}, unk_token="<unk>"))
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, extend=False)
    assert (tokenizer.mask, tokenizer.pad, tokenizer.first, tokenizer.last) == (7, 4, 3, 5)


def test_a_text_that_is_too_long_is_cut_where_transformers_cuts_it(tmp_path):
    make_bert(truncation_side="left").save_pretrained(tmp_path)
    transformers.BertConfig().save_pretrained(tmp_path)
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path, extend=False)
    tokenizer.save(tmp_path / "again.json")
    for ours in (tokenizer, Tokenizer.load(tmp_path / "again.json", extend=False)):
        assert ours.cuts_left
        assert (
            ours.frame(ours.encode(["abc " * 30])[0][-8:])
            == stock("abc " * 30, truncation=True, max_length=10).input_ids
        )


def test_a_tokenizer_json_alone_is_taken_at_its_word(tmp_path):
    """transformers makes the tokenizer of the model's type anew from the vocabulary, whatever else the file says."""
    backend = word_level("[PAD] [UNK] [CLS] [SEP] [MASK] Hello, hello ,")
    backend.save(str(tmp_path / "tokenizer.json"))
    transformers.BertConfig().save_pretrained(tmp_path)
    assert ids_of(Tokenizer.load(tmp_path), ["Hello, hello"]) == [[2, 5, 6, 3]]


def test_where_transformers_and_the_file_disagree_it_is_said(tmp_path):
    backend = word_level("[PAD] [UNK] [CLS] [SEP] [MASK] Hello, hello ,")
    backend.save(str(tmp_path / "tokenizer.json"))
    transformers.BertConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="in another way than its tokenizer.json states"):
        tokenizer = Tokenizer.load(tmp_path, extend=False)
    assert ids_of(tokenizer, ["Hello, hello"]) == [stock("Hello, hello").input_ids] != [[2, 5, 6, 3]]


def test_a_cased_vocabulary_that_is_read_in_lower_case_is_doubted(tmp_path):
    """transformers' default, where the files do not say otherwise; BioBERT came so."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nParis\nparis\n")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="words with capitals, such as Paris, but reads all texts in lower case"):
        assert ids_of(Tokenizer.load(tmp_path), ["Paris"]) == [[2, 6, 3]]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert ids_of(Tokenizer.load(tmp_path), ["Paris"]) == [[2, 5, 3]]


def test_what_a_file_says_of_padding_and_truncation_is_not_followed(tmp_path):
    """all-MiniLM-L6-v2's pads and cuts every text to 128 tokens, though its model takes 256."""
    stock = make_bert()
    stock.backend_tokenizer.enable_truncation(4)
    stock.backend_tokenizer.enable_padding(length=4)
    stock.save_pretrained(tmp_path)
    transformers.BertConfig().save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert len(Tokenizer.load(path, extend=False).encode(["abc " * 30])[0]) >= 30
        assert len(Tokenizer.load(path, extend=False).encode(["a"])[0]) == 1


def test_no_merge_is_dropped(tmp_path):
    """A tokenizer that was saved while it was trained with may drop merges at random."""
    backend = make_modernbert().backend_tokenizer
    backend.model.dropout = 0.9
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json", extend=False)
    assert ids_of(tokenizer, odd_texts(30)) == [make_modernbert()(text).input_ids for text in odd_texts(30)]


def test_a_vocabulary_alone(tmp_path):
    stock = make_bert()
    names = sorted(stock.vocab, key=stock.vocab.get)
    (tmp_path / "vocab.txt").write_text("\n".join(names) + "\n")
    transformers.BertConfig().save_pretrained(tmp_path)
    texts = odd_texts(40, seed=2)
    assert ids_of(Tokenizer.load(tmp_path, extend=False), texts) == [stock(text).input_ids for text in texts]


def no_files(folder: Path) -> str:
    return "There is no tokenizer .*: name a tokenizer.json or a directory that has one"


def sentencepiece_alone(folder: Path) -> str:
    (folder / "spiece.model").write_bytes(b"anything")
    return r"has only a tokenizer of sentencepiece \(spiece.model\): pip install sentencepiece, or save"


def junk_beside_settings(folder: Path) -> str:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "tokenizer.json").write_text('{"version": ')
    return "cannot be read by transformers: "


@pytest.mark.parametrize("fault", [no_files, sentencepiece_alone, junk_beside_settings])
def test_what_cannot_be_read_is_said(fault, tmp_path):
    transformers.AlbertConfig().save_pretrained(tmp_path)
    words = fault(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_no_program_of_a_checkpoint_runs(tmp_path, capfd):
    transformers.BertConfig().save_pretrained(tmp_path)
    word_level("[UNK] a").save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "TheirTokenizer", "auto_map": {"AutoTokenizer": ["theirs.TheirTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "theirs.py").write_text("print('a program ran')\nclass TheirTokenizer: pass\n")
    with contextlib.suppress(UserError):
        Tokenizer.load(tmp_path)
    assert "a program ran" not in capfd.readouterr().out
