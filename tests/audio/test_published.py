"""Equal outputs with AudioMAE, EAT and SSLAM, on random weights and in the formats in which they were published."""

from argparse import Namespace

import pytest
import torch
from audio_peers import clips, difference, padded
from published_audio import (
    AUDIOSET,
    EAT_AUDIOSET,
    fairseq_state,
    fbanks,
    make_audio_mae,
    make_eat,
    save_eat_folder,
    save_timm_folder,
)

from audio import AST, from_hf
from audio.pretrained import load_pretrained
from core import UserError, WeightsError


def outputs(ours, sounds):
    """Of clips in a padded batch, as a list and alone."""
    with torch.no_grad():
        return [ours(*padded(sounds)), ours(sounds), torch.cat([ours(sound[None]) for sound in sounds])]


def assert_equal(ours, expected, sounds):
    assert all(difference(found, expected) <= 1e-5 for found in outputs(ours, sounds))


def assert_masked(ours, stock):
    sounds = clips()
    together, ragged, alone = outputs(ours, sounds)
    assert difference(together, alone) <= 1e-5 and difference(ragged, alone) <= 1e-5
    assert difference(outputs(stock, sounds)[0], alone) > 1e-2


# --- AudioMAE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1024, 512])
def test_a_fine_tuned_audio_mae(frames, tmp_path):
    peer, file = make_audio_mae(frames=frames), tmp_path / "finetuned.pth"
    torch.save({"model": peer.state_dict(), "epoch": 99, "args": Namespace(model="vit_base_patch16")}, file)
    with torch.no_grad():
        expected = peer(fbanks(clips(), *AUDIOSET, frames))
    ours = from_hf(file)
    assert ours.config.max_frames == frames and ours.config.classes == 7
    assert_equal(ours, expected, clips())
    assert_masked(from_hf(file, mask_padding=True), ours)
    ours.save_pretrained(tmp_path / "ours")
    assert_equal(AST.from_pretrained(tmp_path / "ours"), expected, clips())


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_an_audio_mae_in_timms_format(pool, tmp_path):
    peer = make_audio_mae(classes=0 if pool == "token" else 527, pool=pool)
    with torch.no_grad():
        expected = peer(fbanks(clips(), *AUDIOSET))
    ours = from_hf(save_timm_folder(peer, tmp_path, pool))
    assert ours.config.multilabel == (pool == "avg")
    assert_equal(ours, expected, clips())


def test_a_pretrained_audio_mae_has_a_decoder_that_is_left_out(tmp_path):
    peer, file = make_audio_mae(classes=0, pool="token"), tmp_path / "pretrained.pth"
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    torch.save({"model": {**peer.state_dict(), **decoder}}, file)
    with torch.no_grad():
        expected = peer.forward_features(fbanks(clips(), *AUDIOSET))[:, 1:].mean(dim=1)
    assert_equal(from_hf(file), expected, clips())


def test_positions_of_an_audio_mae_are_resized(tmp_path):
    peer, file = make_audio_mae(), tmp_path / "finetuned.pth"
    torch.save(peer.state_dict(), file)
    ours, longer = from_hf(file), from_hf(file, max_frames=2048, mask_padding=True)
    old, new = (model.embed.patches.positions.weight[1:].unflatten(0, model.embed.grid) for model in (ours, longer))
    assert new.shape == (8, 128, 192)
    assert (
        torch.cosine_similarity(old[3, 10], new[3, 20], dim=0)
        > 0.6
        > torch.cosine_similarity(old[3, 10], new[3, 60], dim=0)
    )
    with torch.no_grad():
        assert longer(clips((15.0,))).isfinite().all()


# --- EAT and SSLAM ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 527])
def test_an_eat_in_the_format_of_its_hub(classes, tmp_path):
    peer = make_eat(classes)
    with torch.no_grad():
        spectrograms = fbanks(clips(), *EAT_AUDIOSET)
        states, expected = peer.features(spectrograms), peer(spectrograms)
    ours = from_hf(save_eat_folder(peer, tmp_path))
    assert ours.config.classes == classes and ours.config.multilabel == bool(classes)
    assert_equal(ours, expected, clips())
    with torch.no_grad():
        found = ours.encode(*padded(clips())).x
    assert difference(found[:, 0], states[:, 0]) <= 1e-5
    body = found[:, 1:].unflatten(1, (8, 64)).transpose(1, 2).flatten(1, 2)  # ours follow each other along time
    assert difference(body, states[:, 1:]) <= 1e-5
    assert_masked(from_hf(tmp_path, mask_padding=True), ours)


@pytest.mark.parametrize("classes", [0, 50])
@pytest.mark.parametrize("model_type", ["EAT", "SSLAM"])
def test_fairseqs_checkpoints_of_eat_and_sslam(classes, model_type, tmp_path):
    peer, file = make_eat(classes, length=64, head_norm_eps=1e-6), tmp_path / "checkpoint.pt"
    state = fairseq_state(peer)
    if classes:
        state = {key if key.startswith(("fc_norm", "head")) else f"model.{key}": t for key, t in state.items()}
    else:
        state |= {"_ema": {"blocks.0.norm1.weight": torch.zeros(192)}, "center": torch.ones(1, 1, 192)}
        state |= {"modality_encoders.IMAGE.decoder.proj.weight": torch.ones(2, 2), "cls_proj.bias": torch.ones(192)}
    torch.save({"args": None, "cfg": {"model": {"depth": 2}}, "model": state, "extra_state": {"epoch": 10}}, file)
    with torch.no_grad():
        expected = peer(fbanks(clips(), *EAT_AUDIOSET))
    ours = from_hf(file)
    assert ours.config.classes == classes and not ours.config.multilabel
    assert_equal(ours, expected, clips())


def test_an_eat_takes_longer_clips(tmp_path):
    peer = make_eat(7)
    save_eat_folder(peer, tmp_path)
    sounds = clips((14.0, 20.0))
    with torch.no_grad():
        expected = peer(fbanks(sounds, *EAT_AUDIOSET, 2048))
        assert_equal(from_hf(tmp_path, max_frames=2048), expected, sounds)
        alone = peer(fbanks(sounds[1:], *EAT_AUDIOSET, 1984))  # what fills whole patches
        masked = from_hf(tmp_path, mask_padding=True)
        assert difference(masked(sounds)[1:], alone) <= 1e-5


# --- What is refused --------------------------------------------------------------------------------------------------


def test_what_has_no_equal_is_named(tmp_path):
    peer, file = make_eat(), tmp_path / "checkpoint.pt"

    def refused(state, words, kind=UserError, **given):
        torch.save({"model": state}, file)
        with pytest.raises(kind, match=words) as error:
            from_hf(file, **given)
        assert "\n" not in str(error.value)

    state = fairseq_state(peer)
    image = "modality_encoders.IMAGE."
    refused(state, "leave out the extractor", extractor=object())
    positions = torch.randn(1, 512, 192)
    refused({**state, f"{image}fixed_positional_encoder.positions": positions}, "positions that are not sines")
    refused({**state, f"{image}alibi_scale": torch.ones(1)}, "no rule for: alibi_scale", WeightsError)
    refused({**state, "norm.weight": torch.ones(192)}, "no rule for: norm.weight", WeightsError)
    refused({**state, f"{image}local_encoder.proj.weight": torch.ones(192, 3, 16, 16)}, r"shape \(3, 16, 16\)")
    refused({"conv.weight": torch.ones(2)}, "weights of none of AudioMAE, EAT and SSLAM, but: conv.weight")
    mae = make_audio_mae().state_dict()
    refused({**mae, "pos_embed": torch.ones(1, 1213, 192)}, "1212 positions, which are not those of 8 patches")
    wide = {**mae, "blocks.0.norm1.weight": torch.ones(1280)}
    refused(wide, "a ViT of width 1280, whose number of heads is not known")
    refused(
        {key: t for key, t in mae.items() if key != "cls_token"}, "not in the checkpoint: embed.patches.class_token"
    )


def test_directories_that_are_no_sound_model_are_refused_before_their_weights_are_read(tmp_path):
    folder = save_timm_folder(torch.nn.Linear(2, 2), tmp_path, pretrained_cfg={"input_size": [3, 224, 224]})
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="is timm's vit_base_patch16_224 for images of 3 channels, not an AudioMAE"):
        load_pretrained(str(folder))
