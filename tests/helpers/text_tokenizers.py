"""Tokenizers of transformers, trained on generated texts of many scripts, and those texts."""

import json
import math
import random
from collections import Counter
from functools import cache

import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJ",
    "äöüßéèñçøåÄÖÜÉİıŁł",
    "e\u0301a\u0308n\u0303o\u0302\u0323",
    "абвгдеёжзий",
    "αβγδεζηθικλ",
    "שָׁלוֹםבגד",
    "ابتثجحخَُِّ",
    "हिन्दीभाषाक़",
    "ภาษาไทยการเ",
    "日本語漢字中文学生",
    "𠀀𠮷𪚥",
    "カタカナひらがなー",
    "한국어글자",
    "0123456789",
    "①½²٣४１２ａｂ",
)
ODD = (
    *("\u200d", "\u200c", "\u200f", "\u202e", "\u00a0", "\u3000", "\u2028", "\u0085", "\x0b", "\x0c", "\x1c", "\x00"),
    *("\ufffd", "\ufeff", "\ue000", "\u0378", "\t", "\n", "\r\n", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇩🇪", "…", "—", "“q”", "'s"),
    *("n't", "$a_b$", "<b>&amp;", "[MASK]", "<mask>", "[SEP]", "</s>", "<s>", "[PAD]", "<pad>", "[UNK]", "<unk>"),
    *("▁", "##s", "Ġ", "ǅ", "ﬁ", "ﷺ", "\u212a"),
)
BERTS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTAS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def odd_texts(count: int = 200, seed: int = 0) -> list[str]:
    """Texts of one to 40 parts in many scripts, a few of them very long words, with odd characters between."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.choice([1, 2, 5, 12, 40])):
            if draw.random() < 0.65:
                length = draw.choice([1, 2, 4, 8, 8, 30, 6, 150])
                script = draw.choice(SCRIPTS)
                parts.append("".join(draw.choice(script) for _ in range(length)))
            else:
                parts.append(draw.choice(ODD))
            parts.append(draw.choice([" ", " ", " ", "  ", "\n", "", ""]))
        texts.append("".join(parts))
    return [text if text.strip() else "a" for text in texts]


@cache
def _wordpiece(lowercase: bool) -> dict[str, int]:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=BERTS, show_progress=False)
    backend.train_from_iterator(odd_texts(300, seed=7), trainer)
    return backend.get_vocab()


@cache
def _bytes(*specials: str) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(odd_texts(300, seed=7), trainer)
    return backend.to_str()


@cache
def _unigram(*specials: str) -> list[tuple[str, float]]:
    """The most frequent stretches of up to four letters.

    Scores have few digits: a file holds them to the last bit, so that ways to cut a word that are worth the same are
    chosen between alike.
    """
    counts: Counter[str] = Counter()
    for text in odd_texts(300, seed=7):
        words = ("▁" + normalizers.NFKC().normalize_str(text.replace("\x00", ""))).replace(" ", "▁")
        counts.update(words[start : start + size] for size in (1, 2, 3, 4) for start in range(len(words) - size + 1))
    pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))[:800]
    scores = [(piece, round(-10 + math.log(counts[piece]) + len(piece), 3)) for piece in pieces]
    return [(special, 0.0) for special in specials] + scores


def make_bert(lowercase: bool = True, **options) -> transformers.PreTrainedTokenizerBase:
    return transformers.BertTokenizer(vocab=dict(_wordpiece(lowercase)), do_lower_case=lowercase, **options)


def make_distilbert() -> transformers.PreTrainedTokenizerBase:
    return transformers.DistilBertTokenizer(vocab=dict(_wordpiece(True)))


def make_roberta(**options) -> transformers.PreTrainedTokenizerBase:
    model = json.loads(_bytes(*ROBERTAS))["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges, **options)


def make_albert(**options) -> transformers.PreTrainedTokenizerBase:
    return transformers.AlbertTokenizer(vocab=list(_unigram("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")), **options)


def make_xlmr() -> transformers.PreTrainedTokenizerBase:
    return transformers.XLMRobertaTokenizer(vocab=list(_unigram(*ROBERTAS)))


def make_mpnet() -> transformers.PreTrainedTokenizerBase:
    """Its frame is RoBERTa's, and [UNK] is the only name of BERT's that it keeps."""
    renamed = dict(zip(BERTS, ("<pad>", "[UNK]", "<s>", "</s>", "<mask>"), strict=True))
    vocabulary = {renamed.get(token, token): number for token, number in _wordpiece(True).items()}
    return transformers.MPNetTokenizer(vocab=vocabulary)


def make_modernbert() -> transformers.PreTrainedTokenizerBase:
    backend = Tokenizer.from_str(_bytes(*BERTS))
    backend.normalizer = normalizers.NFC()
    frame = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(**frame, special_tokens=ends)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    mask = AddedToken("[MASK]", lstrip=True)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, mask_token=mask, **names)


MAKERS = {
    "Bert": make_bert,
    "Roberta": make_roberta,
    "DistilBert": make_distilbert,
    "Albert": make_albert,
    "ModernBert": make_modernbert,
}
