"""Stock transformers checkpoints on our text encoder, with equal outputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import UserError, WeightsError, convert, load
from core.checkpoints.keys import KeyMap, key_pattern, unfilled, warn_of_new_head
from core.models.hub import (
    HUB,
    installed,
    loader,
    loading,
    local_folder,
    model_folder,
    read_settings,
    settings_folder,
)
from core.models.stock import check_supported

from .checkpoints import Checkpoint, State, of_module, of_source, plain_names
from .families import Family, Head, find_family, shown_head
from .model import TextConfig, TextEncoder
from .sentences import read_sentences
from .tokenizer import Tokenizer
from .towers import TOWERS, read_tower, tower_config

# These may be saved beside a head that does not use them.
UNUSED = (
    "pooler.",
    "cls.seq_relationship.",
    "sop_classifier.",
    "discriminator_predictions.",
    "lm_predictions.",  # DeBERTa-v3's, and the next
    "mask_predictions.",
)


@loader
def from_hf(
    source: str | Path | nn.Module,
    *,
    head: Head | None = None,
    classes: int | None = None,
    max_length: int | None = None,
) -> TextEncoder:
    """Our text encoder with the weights of a BERT of transformers, or of one of its successors (`FAMILIES`).

    source: a name on the hub, a local directory (also of sentence-transformers), or a module in memory: the base model
        (its pooled output is our `features`), or the model for sequence or token classification, question answering or
        masked tokens. Of ELECTRA's discriminator it is the base model; a config that names no class leaves it to the
        names of the weights. The text towers of CLIP and SigLIP return their vector in the joint space.
    head, classes: a head that differs from the checkpoint's is initialised at random, with a warning.
    max_length: use fewer positions than the checkpoint has.

    A checkpoint with missing or unexpected weights raises a WeightsError that names them.
    """
    is_module = isinstance(source, nn.Module)
    checkpoint = of_module(source) if is_module else of_source(source, _check)
    if checkpoint.kind in TOWERS:
        if (head, classes, max_length) != (None, None, None):
            raise UserError(f"from_hf reads a {checkpoint.kind} as it is: leave out head, classes and max_length.")
        return read_tower(checkpoint.config, checkpoint.kind, plain_names(checkpoint.weights, ""), take=not is_module)
    stock, weights, key_map = read_stock(checkpoint)
    if max_length is not None and max_length > stock.max_length:
        raise UserError(f"from_hf: the checkpoint is for {stock.max_length} tokens: max_length cannot be {max_length}.")
    own_length = (checkpoint.sentences and checkpoint.sentences.max_length) or stock.max_length
    config = replace(stock, max_length=min(max_length or own_length, stock.max_length))
    if (table := "embed.positions.weight") in weights:
        extra = config.padding is not None  # the row of padding tokens
        if len(weights[table]) != stock.max_length + extra:
            found = len(weights[table]) - extra
            raise WeightsError(f"The checkpoint has positions for {found} tokens, its config for {stock.max_length}.")
        weights[table] = weights[table][: config.max_length + extra]
    fresh = ()
    head, classes = head or stock.head, stock.classes if classes is None else classes
    if head != stock.head or (head in ("classes", "tags") and classes != stock.classes):
        config = replace(config, head=head, classes=classes, labels=(), multilabel=False)
        if head != "none":
            warn_of_new_head(_head(stock), _head(config))
        with_norm = head == "tokens" or config.head_norm
        config = replace(config, head_dense=head in ("classes", "tokens"), head_norm=with_norm)
        fresh = ("head.",)
    model = unfilled(lambda: TextEncoder(config), fresh)
    wanted, given = ({key for key in keys if not key.startswith(fresh)} for keys in (model.state_dict(), weights))
    faults = {"lacks": wanted - given, "holds more than its config says": given - wanted}
    for fault, at_fault in faults.items():
        if at_fault:
            names = sorted(name for key in at_fault for name in stock_names(key, key_map))
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise WeightsError(f"The checkpoint {fault}: {', '.join(names[:5])}{more}.")
    load(model, weights, fresh=fresh, take=not is_module)
    return model.eval()


def load_pretrained(source: str) -> tuple[TextEncoder, Tokenizer]:
    """A model with its tokenizer: of a run, of a directory written by save_pretrained (ours or transformers') or by
    sentence-transformers, of a Python package (package:NAME), or on the hub (hf-hub:NAME, so that a misspelt directory
    is an error at once)."""
    source = installed(source)
    folder = settings_folder(source) if source.startswith(HUB) else model_folder(Path(source))
    with loading(source):
        sentences = read_sentences(folder)
    transformer = sentences.folder if sentences else folder
    if "model_type" in read_settings(transformer / "config.json"):
        with loading(source):
            model = from_hf(source if source.startswith(HUB) else folder)
    else:
        model = TextEncoder.from_run(local_folder(source) if source.startswith(HUB) else source, "text")
    tokenizer = Tokenizer.load(transformer, extend=False)
    if sentences and sentences.lowercase:
        tokenizer.lowercase()
    size = max(tokenizer.size, *(number + 1 for number in (*tokenizer.before, *tokenizer.after)))
    if size > model.config.vocab_size:
        raise UserError(f"{source}: the tokenizer has {size} tokens, but the model {model.config.vocab_size}.")
    tokenizer.room(model.config.max_length)
    return model, tokenizer


def _check(stock: Any, kind: str) -> None:
    """Refuse a class or a config of transformers that is not supported."""
    if kind in TOWERS:
        tower_config(stock, kind)
    else:
        _config(stock, *find_family(stock, kind))


def _config(stock: Any, family: Family, head: Head, has_pooler: bool = False) -> TextConfig:
    """Our config for that of transformers; what we do not support is an error."""
    config = replace(family.read(stock, head, has_pooler), head=head)
    if head in ("classes", "tags"):
        config = replace(config, **_classes(stock))
    if head == "spans":
        check_supported(stock.num_labels == 2, f"answers by {stock.num_labels} outputs")
    return config


def read_stock(checkpoint: Checkpoint) -> tuple[TextConfig, State, KeyMap]:
    """A checkpoint's config and weights in our form, and the key map used; what we do not support is an error."""
    stock, kind, weights, sentences = checkpoint
    family, head = find_family(stock, "" if sentences else kind)
    weights = plain_names(weights, family.prefix)
    if not kind and not sentences:
        head = shown_head(family, weights)
    every = {start for starts in family.heads.values() for start in starts} | set(UNUSED)
    foreign = tuple(every - set(family.heads[head]))
    unused = tuple(every) if sentences else tuple(set(foreign) & set(UNUSED))
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(unused)}
    keys = {names: target for names, target in family.keys.items() if not _sources(names)[0].startswith(foreign)}
    config = _config(stock, family, head, any(key.startswith("pooler.") for key in weights))
    if sentences:
        made = {"pool": sentences.pool, "sentence_pool": sentences.pool, "sentence_norm": sentences.norm}
        config = replace(config, **made, sentence_prompt=sentences.prompt)
    weights = convert(weights, keys)
    if sentences and sentences.dense:
        weights |= sentences.dense.weights()
        width, activation = len(weights["sentence_dense.weight"]), sentences.dense.activation
        config = replace(config, sentence_width=width, sentence_activation=activation)
    if head == "tokens":
        words, tied = weights.get("embed.words.weight"), getattr(stock, "tie_word_embeddings", True)
        if tied and words is not None:
            # As in transformers: a decoder that was saved with other weights is not tied, whatever the config says.
            tied = torch.equal(weights.setdefault("head.out.weight", words), words)
        config = replace(config, tie_weights=tied)
    if (table := "embed.positions.weight") in weights and config.padding is not None:
        weights[table] = weights[table][config.padding :]
    return config, weights, keys


def stock_names(key: str, keys: KeyMap) -> list[str]:
    """The keys of the stock model's weights that one of ours is made from."""
    for sources, target in keys.items():
        if isinstance(target, str) and (match := key_pattern(target).fullmatch(key)):
            return [source.format(**match.groupdict()) for source in _sources(sources)]
    return [key]


def _sources(sources: str | tuple[str, ...]) -> tuple[str, ...]:
    return (sources,) if isinstance(sources, str) else sources


def _classes(stock: Any) -> dict[str, Any]:
    """What a classifier predicts: by transformers' rule a number where there is one output and nothing else is said."""
    count, problem = stock.num_labels, stock.problem_type
    multilabel = problem == "multi_label_classification"
    check_supported(problem != "regression" or count == 1, f"a regression of {count} numbers")
    named = sorted(stock.id2label) == list(range(count)) and (count > 1 or multilabel)
    labels = tuple(str(stock.id2label[number]) for number in range(count)) if named else ()
    return {"classes": count, "labels": labels, "multilabel": multilabel}


def _head(config: TextConfig) -> str:
    named = {
        "classes": f"{config.classes} classes",
        "tags": f"{config.classes} tags",
        "spans": "answers",
        "tokens": "masked tokens",
        "none": "nothing",
    }
    return named[config.head]
