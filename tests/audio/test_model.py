from dataclasses import replace

import pytest
import torch
from small_ast import KALDI, TINY
from torchaudio.functional import resample

from audio import AST, ASTConfig, FeatureConfig
from audio.speeds import at_speed
from core import EncoderConfig, UserError, from_dict, to_dict

VARIANTS = {
    "stock": TINY,
    "kaldi": replace(TINY, features=KALDI),
    "one number": replace(TINY, patch_size=8, stride=8),
    "cls": replace(TINY, pool="cls", head_norm=False),
    "mean": replace(TINY, pool="mean"),
    "max": replace(TINY, pool="max"),
    "attention pool": replace(TINY, pool="attention"),
    "sincos": replace(TINY, positions="sincos"),
    "rotary": replace(TINY, positions="none", encoder=replace(TINY.encoder, rotary="2d")),
    "features": replace(TINY, classes=0),
    "padded as the reference": replace(TINY, mask_padding=False, features=KALDI),
}
LENGTHS = (1801, 3000, 30, 2400, 950)  # samples; the third is shorter than a frame, the last than a patch


def make(config):
    torch.manual_seed(0)
    model = AST(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def clips(*lengths, padding=0.0, room=700):
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.full((len(lengths), max(lengths) + room), padding)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length, generator=generator) * 0.1
    return waveforms, torch.tensor(lengths)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_clip_gives_the_same_alone_padded_and_in_any_batch(name):
    model = make(VARIANTS[name])
    waveforms, lengths = clips(*LENGTHS, padding=torch.nan)
    with torch.no_grad():
        together = model(waveforms, lengths)
        pair = model(waveforms[[0, 2]], lengths[[0, 2]])
        for row, length in enumerate(LENGTHS):
            alone = model(waveforms[row : row + 1, :length])
            padded = model(waveforms[row : row + 1], lengths[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(pair, together[[0, 2]], rtol=0, atol=1e-5)
    assert together.isfinite().all()
    assert (together[0] - together[1]).abs().max() > 1e-3  # clips do differ


def test_a_mask_only_where_something_is_padded():
    model = make(TINY)
    waveforms, lengths = clips(1801, 3000)
    tokens = model.tokens(waveforms, lengths)
    columns = tokens.grid[1]
    assert tokens.grid[0] == 3 and tokens.prefix == 2 and tokens.mask.shape == (2, 2 + 3 * columns)
    frames = model.filterbank.frames(lengths)
    assert columns == (int(frames[1]) - 6) // 4 + 1
    assert tokens.mask[1].all() and int(tokens.mask[0].sum()) == 2 + 3 * ((int(frames[0]) - 6) // 4 + 1)
    assert model.tokens(waveforms, torch.tensor([3000, 3000])).mask is None
    assert model.tokens(waveforms).mask is None
    reference = make(replace(TINY, mask_padding=False)).tokens(waveforms, lengths)
    assert reference.mask is None and reference.grid == (3, 14)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_learn_everywhere_and_are_saved(name, tmp_path):
    config = VARIANTS[name]
    torch.manual_seed(0)
    model = AST(config)
    waveforms, lengths = clips(1801, 3000)
    out = model(waveforms, lengths)
    assert out.shape == (2, config.classes or 32)
    out.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert from_dict(ASTConfig, to_dict(config)) == config
    model.save_pretrained(tmp_path)
    again = AST.from_pretrained(tmp_path)
    torch.testing.assert_close(again(waveforms, lengths), out, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["stock", "sincos", "features", "padded as the reference"])
def test_the_mean_over_speeds_is_that_of_each_clip_alone_in_evaluation(name):
    plain, config = make(VARIANTS[name]), replace(VARIANTS[name], speeds=(50, 110))
    model = AST(config)
    model.load_state_dict(plain.state_dict())
    waveforms, lengths = clips(*LENGTHS, padding=torch.nan)
    alone = [waveforms[row, :length] for row, length in enumerate(lengths)]
    model.train(), plain.train()
    torch.testing.assert_close(model(alone), plain(alone), rtol=0, atol=0)
    model.eval(), plain.eval()
    longest = config.audio_format.longest

    def at(clip, percent):
        changed = resample(clip, percent, 100)
        return clip if longest is not None and len(changed) > longest else changed

    assert [len(at(clip, 50)) > len(clip) for clip in alone].count(False) == (0 if name == "sincos" else 1)
    expected = torch.cat([(plain([c]) + plain([at(c, 50)]) + plain([at(c, 110)])) / 3 for c in alone])
    assert (expected - plain(alone)).abs().max() > 1e-3
    torch.testing.assert_close(model(alone), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(waveforms, lengths), expected, rtol=1e-4, atol=1e-5)
    whole = waveforms[:2, :1801]  # without lengths
    torch.testing.assert_close(model(whole), model([*whole]), rtol=1e-4, atol=1e-5)


def test_speeds_are_changed_in_single_precision():
    form = replace(TINY, speeds=(90, 110)).audio_format
    waveforms, lengths = clips(*LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        found = at_speed(waveforms, lengths, 90, form)
    for ours, expected in zip(found, at_speed(waveforms, lengths, 90, form), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_spectrograms_are_masked_out_in_training_alone():
    model = make(replace(TINY, freq_mask=8, time_mask=10))
    waveforms, _ = clips(3000, 3000)
    seen = []
    model.embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.eval().tokens(waveforms), model.tokens(waveforms)
    patches = model.patches(waveforms)
    torch.manual_seed(0)
    model.train().tokens(waveforms)
    plain, again, masked = seen
    assert torch.equal(again, plain)
    assert torch.equal(model.patches(waveforms), patches)  # patches are those of the features without masks
    changed = masked != plain
    assert (masked[changed] == 0).all()
    rows, columns = changed.all(dim=2).sum(dim=1), changed.all(dim=1).sum(dim=1)
    assert (rows + columns > 0).all() and rows.max() <= 8 and columns.max() <= 10
    assert not torch.equal(changed[0], changed[1])  # each clip its own


def test_each_clip_is_masked_out_within_its_own_frames_and_never_wholly():
    model = make(replace(TINY, time_mask=60)).train()
    seen = []
    model.embed.register_forward_pre_hook(lambda _, given: seen.append(given))
    waveforms, lengths = clips(*[1200, 3000] * 64)
    model.tokens(waveforms, lengths)
    features, frames = seen[0]
    masked = (features == 0).all(dim=1)
    for short in (True, False):
        among = frames == frames.min() if short else frames == frames.max()
        count = int(frames[among][0])
        inside = masked[among, :count].sum(dim=1)
        assert count // 4 < inside.max() <= count // 2
        assert (inside > 0).sum() > 50 and not masked[among, count:].any()
        ends = masked[among, :count].any(dim=0)
        assert ends[:3].any() and ends[-3:].any()  # anywhere


@pytest.mark.parametrize(
    "config, samples, words",
    [
        (TINY, 6000, r"A clip of 0.75 s \(\d+ frames\) is longer than the 0.63 s \(60 frames\).*--window"),
        (VARIANTS["padded as the reference"], 6000, "is longer than"),
        (TINY, 0, "A clip has no samples"),
    ],
)
def test_clips_that_do_not_fit(config, samples, words):
    with pytest.raises(UserError, match=words):
        make(config)(torch.zeros(1, samples))


def test_without_learned_positions_a_clip_may_be_any_length():
    assert make(VARIANTS["sincos"])(torch.randn(1, 20_000)).isfinite().all()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"patch_size": 24}, "20 mel bins cannot be cut into patches of 24"),
        ({"max_frames": 5}, "5 frames cannot be cut into patches of 6"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"stride": (21, 4)}, "20 mel bins cannot be cut into patches of 8 at a stride of 21"),
        ({"stride": (5, 61)}, "60 frames cannot be cut into patches of 6 at a stride of 61"),
        ({"freq_mask": 21}, "freq_mask must be at most n_mels, which is 20, not 21"),
        ({"time_mask": 61}, "time_mask must be at most max_frames, which is 60, not 61"),
        (
            {"features": FeatureConfig(frame_length=0.1, frame_shift=0.1)},
            "0.1 ms every 0.1 ms are too short at 8000 Hz",
        ),
        ({"features": FeatureConfig(f_max=4001.0)}, "Filters from 20 to 4001 Hz at a sample rate of 8000 Hz"),
        ({"encoder": EncoderConfig(dim=32, heads=2, rotary="2d", rotary_unit=True)}, "set rotary_unit=False"),
    ],
)
def test_configs_that_make_no_model(changes, words):
    with pytest.raises(UserError, match=words):
        AST(replace(TINY, **changes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_may_be_of_another_precision(dtype):
    waveforms, model = [torch.randn(3000), torch.randn(2400)], make(TINY)
    expected, found = model(waveforms), model.to(dtype)([clip.to(dtype) for clip in waveforms])
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.1 if dtype == torch.bfloat16 else 1e-4, rtol=0.05)


@pytest.mark.parametrize("pool", ["cls_mean", "each_prefix"])
def test_a_pool_of_several_vectors_is_refused(pool):
    with pytest.raises(UserError, match="must be cls, prefix, mean, max or attention"):
        replace(TINY, pool=pool)
