"""From text to word numbers, by the tokenizers library: trained on a corpus, or loaded from a tokenizer.json."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from core import UserError
from core.config import Count, configclass

# What tokenizers call the tokens that stand for something other than text.
SPECIALS = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "first": ("[CLS]", "<s>", "<cls>"),
    "last": ("[SEP]", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>"),
}


@configclass
class TokenizerConfig:
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    """WordPiece (BERT's) or byte-level byte-pair encoding (RoBERTa's)."""
    vocab_size: Count = 8192
    """Most words of a vocabulary that is trained."""
    lowercase: bool = True
    """Whether a and A are one (of a tokenizer that is trained)."""
    path: Path | None = None
    """A tokenizer.json, or a directory that has one, to use instead of training one."""


class Tokenizer:
    """Texts to word numbers and back. Special tokens that the vocabulary lacks are added at its end."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        ids = {}
        for name, spellings in SPECIALS.items():
            known = [token for token in spellings if backend.token_to_id(token) is not None]
            if not known:
                backend.add_special_tokens([spellings[0]])
            ids[name] = backend.token_to_id((known or spellings)[0])
        self.pad, self.first, self.last, self.mask = ids["pad"], ids["first"], ids["last"], ids["mask"]
        self.specials = frozenset(ids.values())

    @property
    def size(self) -> int:
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The word numbers of each text, without a frame."""
        return [found.ids for found in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def frame(self, ids: Sequence[int]) -> list[int]:
        """Between the first token (which the class is read from) and the last."""
        return [self.first, *ids, self.last]

    def words(self, text: str) -> list[tuple[str, int]]:
        """The words as they stand in the text, each with how many tokens it takes."""
        found = self.backend.encode(text, add_special_tokens=False)
        spans: list[list[int]] = []
        last = None
        for word, (start, end) in zip(found.word_ids, found.offsets, strict=True):
            if word is not None and word == last:  # spans of bytes can overlap: take from first to last
                spans[-1] = [spans[-1][0], max(end, spans[-1][1]), spans[-1][2] + 1]
            else:
                spans.append([start, end, 1])
            last = word
        return [(text[start:end].strip(), count) for start, end, count in spans]

    def token(self, number: int) -> str:
        """One token, readable."""
        return self.backend.decode([number], skip_special_tokens=False).strip()

    def save(self, path: Path) -> None:
        self.backend.save(str(path))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"There is no tokenizer {file}: name a tokenizer.json or a directory that has one.")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises nothing more particular
            raise UserError(f"{file} is not a tokenizer.json: {str(error).splitlines()[0]}.") from None


def train_tokenizer(texts: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    """A vocabulary of the words and pieces of words that `texts` have most of; the same for the same texts."""
    special = [spellings[0] for spellings in SPECIALS.values()]
    backend = tokenizers.Tokenizer(models.BPE())
    trainer = {"vocab_size": config.vocab_size, "min_frequency": 2, "show_progress": False}
    if config.kind == "bpe":
        steps = [normalizers.NFC(), *([normalizers.Lowercase()] if config.lowercase else [])]
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer |= {"special_tokens": special, "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
        backend.train_from_iterator(texts, trainers.BpeTrainer(**trainer))
    else:
        backend.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.train_from_iterator(texts, trainers.BpeTrainer(**trainer))
        vocabulary = [*special, *_pieces(backend, texts)][: config.vocab_size]
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        backend.model = models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100)
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens(special)
    return Tokenizer(backend)


def _pieces(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[str]:
    """The pieces that byte-pair merges leave words in, as WordPiece writes them: letters, then the most frequent.

    The library's own WordPiece trainer breaks ties by chance: the same texts give another vocabulary in each process.
    """
    letters = sorted(piece for piece in backend.get_vocab() if len(piece) == 1)
    counts: Counter[str] = Counter()
    for found in backend.encode_batch(list(texts)):
        starts = [word != before for word, before in zip(found.word_ids, [None, *found.word_ids], strict=False)]
        counts.update(piece if start else f"##{piece}" for piece, start in zip(found.tokens, starts, strict=True))
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))
    return list(dict.fromkeys([*letters, *(f"##{letter}" for letter in letters), *frequent]))
