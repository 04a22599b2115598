"""A list of clips of any lengths gives what each of them gives alone, without padding."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from small_ast import KALDI, TINY
from small_runs import CLIPS
from torch.nn.utils.rnn import pad_sequence
from transformers import ASTConfig as PeerConfig
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from audio import AST, FeatureConfig, Filterbank, from_hf
from audio.augment import Augment
from audio.datasets import DTMF, Folder
from audio.predict import BATCH, batches, outputs
from audio.samples import collate
from audio.train import AUDIO
from core import UserError, adapters
from core.encoder.pack import unpack
from core.experiments import train_command
from core.sparse import Local, Window2d


def encoder(**changes):
    return replace(TINY.encoder, **changes)


VARIANTS = {
    "learned": TINY,
    "kaldi": replace(TINY, features=KALDI),
    "patches that do not overlap": replace(TINY, patch_size=(10, 4), stride=(10, 4)),
    "gaps between patches": replace(TINY, patch_size=(4, 3), stride=(5, 7)),
    "stem": replace(TINY, patch_size=(8, 4), stride=(8, 4), stem=(4, 4, 6)),
    "centred": replace(TINY, features=FeatureConfig(floor=30.0, centre=True, mean=0.0)),
    "sincos": replace(TINY, positions="sincos"),
    "rotary": replace(TINY, positions="none", encoder=encoder(rotary="2d")),
    "mean": replace(TINY, pool="mean"),
    "cls": replace(TINY, pool="cls", head_norm=False),
    "attention pool": replace(TINY, pool="attention"),
    "features": replace(TINY, classes=0),
    "window": replace(TINY, encoder=encoder(patterns=Window2d(1))),
    "local": replace(TINY, pool="mean", encoder=encoder(patterns=(Local(2), None))),
    "lora": TINY,
    "padded as the reference": replace(TINY, mask_padding=False, features=KALDI),
}
LENGTHS = (1801, 3000, 30, 2400, 950, 3000)  # samples; the third is shorter than a frame, the fifth than a patch


def make(name, **changes):
    torch.manual_seed(0)
    model = AST(replace(VARIANTS[name], **changes)).eval()
    if name == "lora":
        adapters.add(model, adapters.LoRA(rank=4, roles=("q", "v", "mlp_in")))
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def noises(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def packed(model, given):
    return model(given)


def alone(model, given):
    return torch.cat([model(clip[None]) for clip in given])


def results(run, model):
    """Outputs, and the gradients of the weights and the inputs."""
    model.zero_grad()
    leaves = [clip.requires_grad_() for clip in noises()]
    out = run(model, leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    return [
        out.detach(),
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        *(c.grad for c in leaves),
    ]


DOUBLE = {torch.float64: [name for name, config in VARIANTS.items() if config.features != KALDI]}  # that is single


@pytest.mark.parametrize(
    "name, dtype", [(name, dtype) for dtype, names in ({torch.float32: VARIANTS} | DOUBLE).items() for name in names]
)
def test_packed_equals_alone_in_outputs_and_gradients(name, dtype):
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    model = make(name).to(dtype)
    together, separate = results(packed, model), results(alone, model)
    assert len(together) == len(separate) > 10
    for found, expected in zip(together, separate, strict=True):
        scale = max(expected.abs().max().item(), 1)
        assert (found - expected).abs().max() <= tolerance * scale
    assert (together[0][0] - together[0][1]).abs().max() > 1e-3  # clips do differ


@pytest.mark.parametrize("name", VARIANTS)
def test_a_list_equals_the_padded_batch_in_training_too(name):
    masks = {"freq_mask": 8, "time_mask": 10}
    model = make(name, **masks)
    given, lengths = noises(), torch.tensor(LENGTHS)
    padded = pad_sequence(given, batch_first=True, padding_value=torch.nan)
    with torch.no_grad():
        torch.testing.assert_close(model(tuple(given)), model(padded, lengths), rtol=0, atol=1e-5)
        for part in (model.features, lambda *x: model.pooled(model.encode(*x))):
            torch.testing.assert_close(part(given), part(padded, lengths), rtol=0, atol=1e-5)
        model.train()
        out = []
        for inputs in ((given,), (padded, lengths)):
            torch.manual_seed(3)  # the same bands and stretches are masked
            out.append(model(*inputs))
    torch.testing.assert_close(*out, rtol=0, atol=1e-5)
    assert (out[0] - model.eval()(given)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["learned", "kaldi", "patches that do not overlap", "gaps between patches", "rotary"])
def test_no_token_is_padding(name):
    model = make(name)
    tokens = model.tokens(noises())
    assert tokens.mask is None and tokens.count == len(LENGTHS)
    patches = model.patches(noises())
    assert patches.shape[:2] == tokens.body.shape[:2]
    start = 0
    for clip, part in zip(noises(), unpack(tokens), strict=True):
        expected = model.tokens(clip[None])
        assert part.grid == expected.grid and part.prefix == expected.prefix == 2
        assert part.x.shape[1] == model.config.count_tokens(len(clip))
        torch.testing.assert_close(part.x, expected.x, rtol=0, atol=1e-6)
        own = model.patches(clip[None])
        torch.testing.assert_close(patches[:, start : start + own.shape[1]], own, rtol=0, atol=1e-6)
        start += own.shape[1]


def test_padding_that_is_attended_to_stays_a_batch():
    model = make("padded as the reference")
    tokens = model.tokens(noises())
    assert tokens.packing is None and tokens.grid == (3, 14) and tokens.x.shape[1] == model.config.count_tokens(1)
    assert model.patches(noises()).shape[:2] == (len(LENGTHS), 42)
    batch = pad_sequence(noises(), batch_first=True), torch.tensor(LENGTHS)
    assert torch.equal(model(noises()), model(*batch))


@pytest.mark.parametrize("kind", ["logmel", "kaldi"])
@pytest.mark.parametrize("changes", [{}, {"centre": True}, {"floor": 10.0}])
def test_frames_of_a_row_are_those_of_each_clip(kind, changes):
    bank = Filterbank(FeatureConfig(kind=kind, **changes), 8_000, 20)
    given = [*noises(), torch.full((500,), torch.nan), *noises((256, 257, 255))]
    row, counts = bank.row(given)
    assert row.shape[1] == counts.sum()
    for number, (own, clip) in enumerate(zip(row.split(counts.tolist(), dim=1), given, strict=True)):
        expected, frames = bank(clip[None], torch.tensor([len(clip)]))
        assert frames.item() == counts[number]
        if number != len(LENGTHS):  # the NaN of one clip reaches no other
            torch.testing.assert_close(own, expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "given, words",
    [
        ([], "A list of no clips"),
        ([torch.zeros(1000), torch.zeros(0)], "Clip 1 of the list has no samples"),
        ([torch.zeros(6000)], r"Clip 0 of the list of 0.75 s \(\d+ frames\) is longer than the 0.6"),
    ],
)
def test_lists_that_the_model_cannot_take(given, words):
    for model in (make("learned"), make("padded as the reference")):
        for part in (model, model.patches):
            with pytest.raises(UserError, match=words):
                part(given)


def test_a_list_has_no_lengths_and_holds_waveforms():
    model = make("learned")
    with pytest.raises(UserError, match="leave out the lengths"):
        model(noises(), torch.tensor(LENGTHS))
    with pytest.raises(UserError, match="A grid of 3 x 24, but there are positions for only"):
        model.embed.row(torch.zeros(20, 100), torch.tensor([100]))


def test_a_list_gives_the_logits_of_transformers():
    torch.manual_seed(0)
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    small |= {"max_length": 204, "num_labels": 7}
    peer = ASTForAudioClassification(PeerConfig(**small)).eval()
    extractor = ASTFeatureExtractor(num_mel_bins=128, max_length=204)
    given = [0.1 * torch.randn(size) for size in (20_800, 32_000, 6_400)]
    with torch.no_grad():
        inputs = extractor([clip.numpy() for clip in given], sampling_rate=16_000, return_tensors="pt")
        expected = peer(**inputs).logits
        found = from_hf(peer, extractor=extractor)(given)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


# --- Training and prediction ------------------------------------------------------------------------------------------


RUNS = ("folder", "padded")


def rows(run):
    return [json.loads(line) for line in (Path("runs") / run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("elsewhere", "without_figures")
@pytest.mark.parametrize("option", [("--data.augment.mixup", "0.4"), ("--masked.ratio", "0.5")])
def test_training_without_padding_gives_the_same_losses_as_with_it(option, clips, monkeypatch):
    options = ["folder", "--data.path", clips, *CLIPS, *option, "--train.log-every", "1"]
    train_command(AUDIO, [str(option) for option in options])

    def with_padding(samples, padded):
        assert not padded  # without --train.compile
        return collate(samples, padded=True)

    monkeypatch.setattr("audio.train.collate", with_padding)
    train_command(AUDIO, [*map(str, options), "--out", "runs/padded"])
    losses = [[row[name] for row in rows(run) for name in ("loss", "test_loss") if name in row] for run in RUNS]
    assert len(losses[0]) == 7 and torch.tensor(losses).isfinite().all()
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.usefixtures("elsewhere", "without_figures")
def test_steps_of_files_are_cut_by_tokens(clips):
    options = ["folder", "--data.path", clips, *CLIPS, "--train.log-every", "1", "--train.tokens-per-batch", "40"]
    at = options.index("--train.batch-size")
    train_command(AUDIO, [str(option) for option in options[:at] + options[at + 2 :]])
    assert len(rows("folder")) == 6 and all(torch.tensor(row["loss"]).isfinite() for row in rows("folder"))


@pytest.mark.parametrize("seconds", [None, 0.3])
def test_token_counts_are_those_of_the_model(clips, seconds):
    config = replace(TINY, sample_rate=16_000)
    soundfile.write(clips / "high" / "0.wav", soundfile.read(clips / "high" / "0.wav")[0], 44_100)  # is resampled
    data = Folder(path=clips, seconds=seconds, augment=Augment(gain=6.0, shift=0.5)).read(config.audio_format)
    model = AST(config)
    counts = data.train.token_counts
    assert len(set(counts)) > 1
    for part in (data.train, data.validation, data.test):
        assert part.token_counts == [model.tokens([clip]).x.shape[1] for clip, _ in part]


def test_token_counts_of_other_data(clips):
    form = replace(TINY, features=FeatureConfig(frame_length=64.0, frame_shift=16.0)).audio_format
    few = DTMF(per_class=2).read(form).train
    assert few.token_counts == [form.count_tokens(len(clip)) for clip, _ in few]
    assert Folder(path=clips, augment=Augment(mixup=0.4)).read(form).train.token_counts is None  # they are longer
    (clips / "low" / "0.wav").rename(clips / "low" / "0.mp3")  # the header of such a file states no length
    assert Folder(path=clips).read(form).train.token_counts is None


def test_files_of_any_lengths_are_predicted_together():
    model, given = make("learned"), noises([*LENGTHS, *LENGTHS, *LENGTHS])
    parts = list(batches(given, model.config.audio_format))
    assert [len(part) for part in parts] == [BATCH, 2]
    expected = model.probabilities(alone(model, given))
    found = outputs(model, given, lambda batch: model.probabilities(model(batch)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    long = noises((100_000, 1_000, 60_000, 10_000))  # as long as 16 of the longest, or longer
    assert [[len(clip) for clip in part] for part in batches(long, model.config.audio_format)] == [
        [100_000],
        [1_000, 60_000, 10_000],
    ]
