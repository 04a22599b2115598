"""Write a trained model as ONNX or as torch.export's archive: `python -m text.export RUN FILE`."""

from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from torch.export import Dim

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.models.export import check_target, export_model, target_metadata

from .model import TextConfig
from .pairs import PairFramer
from .pretrained import load_pretrained


@configclass
class Arguments:
    """A file that runs without this library: token ids with a padding mask (and segments, of a model of pairs that has
    them), any number of any length, become logits.

    The tokenizer is written to the same directory: for model.onnx it is model.tokenizer.json.
    """

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or transformers'), or hf-hub:NAME."""
    file: Annotated[Path, tyro.conf.Positional]
    """model.onnx, or model.pt2 for torch.export's archive."""


def export(arguments: Arguments) -> None:
    file = arguments.file
    check_target(file)
    model, tokenizer = load_pretrained(arguments.run)
    config = model.config
    if config.max_length < 4:
        raise UserError(f"{arguments.run}: a model of {config.max_length} tokens is too short to export.")
    if config.sentence_width is not None:
        raise UserError(f"{arguments.run}: a dense layer after pooling can't be exported yet.")
    words = file.with_suffix(".tokenizer.json")
    frame = {"before": tokenizer.before, "after": tokenizer.after, "pad": tokenizer.pad}
    metadata = {**target_metadata(config), "tokenizer": words.name, **frame}
    if config.pairs:
        pair = PairFramer(tokenizer)
        metadata |= {"before": pair.before, "between": pair.between, "after": pair.after}
    if config.head == "none" and config.sentence_pool:
        metadata |= {"normalize": config.sentence_norm, "prompt": config.sentence_prompt}
    most = config.max_length if config.positions == "learned" else None
    axes = {0: Dim("batch"), 1: Dim("tokens", max=most)}
    examples = [
        make_inputs(config, batch, min(length, config.max_length)) for batch, length in ((3, 4), (1, 33), (5, 512))
    ]
    output = "features" if config.head == "none" else "logits"
    line = export_model(model, examples, dict.fromkeys(examples[0], axes), output, metadata, file)
    tokenizer.save(words)
    print(f"{line}; its tokenizer: {words}")


def make_inputs(config: TextConfig, batch: int, length: int) -> dict[str, Tensor]:
    """Random words of random lengths; the first text has no padding."""
    lengths = torch.randint(1, length + 1, (batch,))
    lengths[0] = length
    ids = torch.randint(config.vocab_size, (batch, length))
    inputs = {"ids": ids, "mask": torch.arange(length) < lengths[:, None]}
    if config.pairs and config.segments > 1:
        inputs["segments"] = torch.randint(2, (batch, length))
    return inputs


if __name__ == "__main__":
    predict_command("python -m text.export", Arguments, export, to_the_end=True)
