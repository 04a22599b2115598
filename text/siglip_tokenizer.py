"""SigLIP's tokenizer, which transformers reads only with sentencepiece and one text at a time."""

from pathlib import Path
from types import SimpleNamespace

import tokenizers
from tokenizers import normalizers, processors

from core.files import read_json

KIND = "SiglipTokenizer"  # tokenizer_class in tokenizer_config.json
PUNCTUATION = r"[!-/:-@\[-`{-~]"  # of ASCII


def is_siglip(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    return file.is_file() and read_json(file).get("tokenizer_class") == KIND


def read_siglip(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer of a directory, from its tokenizer.json or its spiece.model, and the spellings of its special
    tokens."""
    settings = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        from transformers.convert_slow_tokenizer import SpmConverter

        backend = SpmConverter(SimpleNamespace(vocab_file=str(folder / "spiece.model"))).converted()
    names = {name: _spelling(settings.get(f"{name}_token")) for name in ("pad", "unk", "eos")}
    end = names["eos"]
    if backend.post_processor is None:
        special = [(end, backend.token_to_id(end))]
        backend.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=special)
    if settings.get("do_lower_case", True):
        canonicalize(backend, underscore="")
    return backend, {"pad": names["pad"], "unknown": names["unk"], "last": end}


def canonicalize(backend: tokenizers.Tokenizer, underscore: str) -> None:
    """From now on, read texts in lower case, without punctuation, and with one space between words.

    underscore: what becomes of it; open_clip makes it a space, transformers removes it.
    """
    steps = [
        normalizers.Replace("_", underscore),
        normalizers.Replace(tokenizers.Regex(PUNCTUATION), ""),
        normalizers.Lowercase(),
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    own = backend.normalizer
    backend.normalizer = normalizers.Sequence([*steps, *([] if own is None else [own])])


def _spelling(token: str | dict | None) -> str:
    """A special token is written as text, or with settings of how it is found."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or "</s>"
