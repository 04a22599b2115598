"""Texts become token ids by the tokenizers library; a tokenizer is trained on a corpus, or loaded."""

import contextlib
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from core import UserError
from core.config import Count, configclass
from core.files import check_file, first_line, write_text

from .siglip_tokenizer import is_siglip, read_siglip

# Usual spellings of special tokens.
SPECIALS = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "first": ("[CLS]", "<s>", "<cls>"),
    "last": ("[SEP]", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>"),
}
SENTENCEPIECE = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE)
LONGEST = 100  # characters of a word that WordPiece reads; its time grows with the cube of this
NO_LIMIT = 2**31  # tokens
AT_ONCE = 1000  # texts: the library keeps some hundred bytes for each of their tokens
PROBE = "Don't  stop, 2023: naïve Ünïcode; “x” 日本語 [a_b]\nfoo-bar"


@configclass
class TokenizerConfig:
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    """WordPiece (BERT's) or byte-level byte-pair encoding (RoBERTa's)."""
    vocab_size: Count = 8192
    """Most tokens in the vocabulary of a trained tokenizer."""
    lowercase: bool = True
    """Whether a trained tokenizer lowercases texts."""
    strip_accents: bool = False
    """Whether a trained tokenizer removes accents; it also removes combining vowel signs and points."""
    path: Path | None = None
    """A tokenizer.json, or a directory with one, to use instead of training a tokenizer."""


class Tokenizer:
    """Texts to token ids and back.

    names: the spelling of each special token (pad, unknown, first, last, mask); by default the usual ones are tried.
    extend: add special tokens that the tokenizer lacks at the end of its vocabulary, and put the first and last one
        around texts. False for the tokenizer of a trained model, which has no embeddings for more tokens.

    before, after: the ids of the special tokens that stand before and after each text.
    pad, first, last, mask: ids of special tokens, or None if the tokenizer has no such token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str] | None = None, extend: bool = True):
        self.backend = backend
        self.cuts_left = backend.truncation is not None and backend.truncation["direction"] == "left"
        backend.no_padding()
        backend.no_truncation()
        if getattr(backend.model, "dropout", None):  # BPE dropout, which changes the tokens of a text at random
            backend.model.dropout = None
        names, ids = names or {}, {}
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        for name, spellings in SPECIALS.items():
            usual = sorted(
                spellings, key=lambda token: token not in added
            )  # tokens that were not added may be plain words
            candidates = [names[name]] if name in names else usual
            known = [token for token in candidates if backend.token_to_id(token) is not None]
            if not known and extend:
                backend.add_special_tokens([spellings[0]])
                known = [spellings[0]]
            ids[name] = backend.token_to_id(known[0]) if known else None
        self.pad, self.first, self.last, self.mask = ids["pad"] or 0, ids["first"], ids["last"], ids["mask"]
        framed = None not in (self.first, self.last)
        if framed and (backend.post_processor is None or (extend and not any(_frame(backend)))):
            backend.post_processor = _with_frame(backend, self.first, self.last)
        self.before, self.after = _frame(backend)
        self.size = max(backend.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str], names: Sequence[str] | None = None) -> list[list[int]]:
        """The token ids of each text, without special tokens. names: of the texts, for error messages."""
        return list(self.encode_each(texts, names))

    def encode_each(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Iterator[list[int]]:
        """The same one after the other, for texts whose token ids take much memory as lists."""
        return (encoding.ids for encoding in self._encodings(texts, names))

    def _encodings(self, texts: Sequence[str], names: Sequence[str] | None) -> Iterator[tokenizers.Encoding]:
        check_texts(texts, names)
        for start in range(0, len(texts), AT_ONCE):
            try:
                yield from self.backend.encode_batch(list(texts[start : start + AT_ONCE]), add_special_tokens=False)
            except Exception as error:  # the library raises no narrower kind
                raise UserError(f"The tokenizer cannot read these texts: {first_line(error)}.") from None

    def encode_words(
        self, texts: Sequence[Sequence[str]], names: Sequence[str] | None = None
    ) -> tuple[list[list[int]], list[list[int | None]]]:
        """The token ids of texts that are given as words, with a blank between them, and the place of each word's first
        token (None: it has none). names: of the texts, for error messages."""
        joined = [" ".join(words) for words in texts]
        ids: list[list[int]] = []
        places: list[list[int | None]] = []
        for words, encoding in zip(texts, self._encodings(joined, names), strict=True):
            ends = list(accumulate(len(word) + 1 for word in words))  # with the blank that follows
            first: list[int | None] = [None] * len(words)
            for place, (start, end) in enumerate(encoding.offsets):
                word = bisect_right(ends, end - 1)
                if end > start and end < ends[word] and first[word] is None:  # a token may be nothing but the blank
                    first[word] = place
            ids.append(encoding.ids)
            places.append(first)
        return ids, places

    def frame(self, ids: Sequence[int]) -> list[int]:
        """The ids with those of the special tokens before and after a text."""
        return [*self.before, *ids, *self.after]

    def room(self, most: int) -> int:
        """How many tokens of text fit into `most` tokens, special tokens included."""
        special = len(self.before) + len(self.after)
        if most <= special:
            raise UserError(f"A model of {most} tokens has no room for text: {special} of them are special tokens.")
        return most - special

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where the letters of each token are in the text."""
        return self.backend.encode(text, add_special_tokens=False).offsets

    def words(self, text: str) -> list[tuple[str, int]]:
        """The words as they are written in the text, each with its number of tokens."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        spans: list[list[int]] = []
        last = None
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if word is not None and word == last:  # spans of bytes can overlap
                spans[-1] = [spans[-1][0], max(end, spans[-1][1]), spans[-1][2] + 1]
            else:
                spans.append([start, end, 1])
            last = word
        return [(text[start:end].strip(), count) for start, end, count in spans]

    def token(self, number: int) -> str:
        """A token as readable text."""
        return self.letters(number).strip() or self.backend.id_to_token(number) or f"#{number}"

    def letters(self, number: int) -> str:
        """The characters of a token id, as they are in a text."""
        return self.backend.decode([number], skip_special_tokens=False)

    def lowercase(self) -> None:
        """Lowercase all texts from now on."""
        own = self.backend.normalizer
        self.backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([] if own is None else [own])])

    def save(self, path: Path) -> None:
        if self.cuts_left:  # the library saves it in the settings of truncation
            self.backend.enable_truncation(NO_LIMIT, direction="left")
        write_text(path, self.backend.to_str(pretty=True))
        self.backend.no_truncation()

    @classmethod
    def load(cls, path: Path, extend: bool = True) -> "Tokenizer":
        """A tokenizer.json, or a directory: if the settings of transformers are there, it is read by transformers."""
        file = path / "tokenizer.json" if path.is_dir() else path
        if path.is_dir() and ((path / "tokenizer_config.json").is_file() or not file.is_file()):
            return cls(*_read_stock(path), extend=extend)
        if not file.exists():
            raise UserError(f"There is no tokenizer {file}: name a tokenizer.json or a directory that has one.")
        check_file(file, "tokenizer")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)), extend=extend)
        except UserError:
            raise
        except Exception as error:  # the library raises no narrower kind
            raise UserError(f"{file} is not a tokenizer.json: {first_line(error)}.") from None


def check_texts(texts: Sequence[str], names: Sequence[str] | None = None) -> None:
    """Refuse text that is not valid Unicode: arguments and JSON may hold half of a surrogate pair."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            name = names[number] if names else f"Text {number + 1}"
            raise UserError(f"{name} is not valid Unicode text (character {error.start + 1}): correct it.") from None


def _read_stock(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer that transformers reads from a directory, and the spellings of its special tokens."""
    present = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not present:
        file = folder / "tokenizer.json"
        raise UserError(f"There is no tokenizer {file}: name a tokenizer.json or a directory that has one.")
    if set(present) <= set(SENTENCEPIECE) and not is_siglip(folder) and not find_spec("sentencepiece"):
        raise UserError(
            f"{folder} has only a tokenizer of sentencepiece ({present[0]}): pip install sentencepiece, or save its "
            "tokenizer.json there."
        )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"{folder} has a tokenizer of transformers: pip install transformers, or name its tokenizer.json itself."
        ) from None
    try:
        if is_siglip(folder):
            return read_siglip(folder)
        stock = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        backend = stock.backend_tokenizer
        _warn_of_differences(folder, backend)
    except Exception as error:  # each class of tokenizer raises its own kind for damaged files
        raise UserError(f"The tokenizer in {folder} cannot be read by transformers: {first_line(error)}.") from None
    if backend.post_processor is None:  # it adds no special tokens
        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    backend.enable_truncation(NO_LIMIT, direction=stock.truncation_side)
    names = {
        "pad": stock.pad_token,
        "unknown": stock.unk_token,
        "first": stock.cls_token or stock.bos_token,
        "last": stock.sep_token or stock.eos_token,
        "mask": stock.mask_token,
    }
    return backend, {name: token for name, token in names.items() if token}


def _warn_of_differences(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """Warn if the model was probably trained with another tokenizer than transformers reads."""
    file, vocabulary = folder / "tokenizer.json", backend.get_vocab()

    def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    if file.is_file() and ids(tokenizers.Tokenizer.from_file(str(file)), PROBE) != ids(backend, PROBE):
        warnings.warn(
            f"transformers reads the tokenizer in {folder} in another way than its tokenizer.json states; the way of "
            "transformers is used. To use the file as it is, remove tokenizer_config.json.",
            stacklevel=4,
        )
    capital = next((word for word in vocabulary if word.isascii() and word.istitle() and word.isalpha()), None)
    if isinstance(backend.model, models.WordPiece) and capital and ids(backend, capital) != [vocabulary[capital]]:
        warnings.warn(
            f"The tokenizer in {folder} has words with capitals, such as {capital}, but reads all texts in lower case: "
            'if the model is a cased one, write {"do_lower_case": false} into its tokenizer_config.json.',
            stacklevel=4,
        )


def _frame(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that its post-processor puts before and after a text."""
    if not (text := known_text(backend)):
        return [], []
    found = backend.encode(text)
    own = [place for place, sequence in enumerate(found.sequence_ids) if sequence == 0]
    return found.ids[: own[0]], found.ids[own[-1] + 1 :]


def known_text(backend: tokenizers.Tokenizer) -> str:
    """A text of which the tokenizer makes tokens; nothing if there is none."""
    for text in backend.get_vocab():
        with contextlib.suppress(Exception):  # of a word that the tokenizer cannot read
            if 0 in backend.encode(text).sequence_ids:
                return text
    return ""


def _with_frame(backend: tokenizers.Tokenizer, first: int, last: int) -> processors.PostProcessor:
    """Its post-processor, which then puts a text between two tokens."""
    before, after = backend.id_to_token(first), backend.id_to_token(last)
    frame = processors.TemplateProcessing(
        single=[before, "$A", after],
        pair=[before, "$A", after, "$B:1", f"{after}:1"],
        special_tokens=[(before, first), (after, last)],
    )
    return frame if backend.post_processor is None else processors.Sequence([backend.post_processor, frame])


def train_tokenizer(texts: Sequence[str], config: TokenizerConfig, names: Sequence[str] | None = None) -> Tokenizer:
    """A vocabulary of the words and pieces of words that `texts` have most of; the same for the same texts.

    names: of the texts, for messages.
    """
    check_texts(texts, names)
    special = [spellings[0] for spellings in SPECIALS.values()]
    backend = tokenizers.Tokenizer(models.BPE())
    trainer = {"vocab_size": config.vocab_size, "min_frequency": 2, "show_progress": False}
    if config.kind == "bpe":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        _check_room(config, len(special) + len(alphabet), "every byte")
        stripped = [normalizers.NFD(), normalizers.StripAccents()] if config.strip_accents else []
        lower = [normalizers.Lowercase()] if config.lowercase else []
        backend.normalizer = normalizers.Sequence([*stripped, normalizers.NFC(), *lower])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer |= {"special_tokens": special, "initial_alphabet": alphabet}
        backend.train_from_iterator(texts, trainers.BpeTrainer(**trainer))
    else:
        bert = normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=config.strip_accents)
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), bert])
        # WordPiece makes [UNK] of longer words: DNA, or what is written without spaces.
        pieces = pre_tokenizers.Split(tokenizers.Regex(f".{{{LONGEST}}}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pieces])
        backend.train_from_iterator(texts, trainers.BpeTrainer(**trainer))
        letters = _letters(backend)
        _check_room(config, len(special) + len(letters), "each letter of these texts")
        vocabulary = list(dict.fromkeys([*special, *letters, *_pieces(backend, texts)]))[: config.vocab_size]
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        backend.model = models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=LONGEST)
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens(special)
    return Tokenizer(backend)


def _check_room(config: TokenizerConfig, least: int, what: str) -> None:
    if config.vocab_size < least:
        raise UserError(
            f"--data.tokenizer.vocab-size {config.vocab_size} is too small: the special tokens and {what} take {least}."
        )


def _letters(backend: tokenizers.Tokenizer) -> list[str]:
    """Every letter as WordPiece writes it at the start of a word, and inside one where it can stand there."""
    letters = sorted(piece for piece in backend.get_vocab() if len(piece) == 1)

    def stands_inside(letter: str) -> bool:
        return len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(f"a{letter}"))) == 1

    return [*letters, *(f"##{letter}" for letter in letters if stands_inside(letter))]


def _pieces(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[str]:
    """The pieces that byte-pair merges leave words in, as WordPiece writes them, the most frequent first.

    The library's own WordPiece trainer breaks ties by chance: the same texts give another vocabulary in each process.
    """
    counts: Counter[str] = Counter()
    for found in backend.encode_batch(list(texts)):
        starts = [word != before for word, before in zip(found.word_ids, [None, *found.word_ids], strict=False)]
        counts.update(piece if start else f"##{piece}" for piece, start in zip(found.tokens, starts, strict=True))
    return sorted(counts, key=lambda piece: (-counts[piece], piece))
