"""Models on the hub and in directories: what cannot be loaded is refused by its settings, before its weights are."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import transformers
from audio_peers import make_waveform
from image_text_peers import clip_folder, clip_tokenizer, open_clip_folder
from protein_peers import make_peer as make_protein
from published_audio import PUBLISHED
from text_peers import make_peer as make_text
from vision_peers import PEERS as VISION

import audio
import text
import vision
from core import UserError
from examples.multimodal.pretrained import load_pretrained as load_towers
from examples.protein.pretrained import from_hf as protein_from_hf


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository and the cache that files are downloaded into."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    remote.mkdir()

    def snapshot_download(name, allow_patterns):
        assert name == "someone/model"
        for file in remote.rglob("*"):
            relative = str(file.relative_to(remote))
            if file.is_file() and any(fnmatch(relative, pattern) for pattern in allow_patterns):
                (cache / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / relative)
        return str(cache)

    monkeypatch.setattr("core.models.hub.snapshot_download", snapshot_download)
    return remote, cache


def save(peer, folder, extractor=None):
    peer.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)


LOADED = {
    "text": (lambda folder: save(make_text("Bert", "Model"), folder), text.from_hf),
    "vision": (
        lambda folder: save(VISION["ViT (transformers)"](), folder, transformers.ViTImageProcessor()),
        vision.from_hf,
    ),
    "audio": (
        lambda folder: save(make_waveform("Wav2Vec2"), folder, transformers.Wav2Vec2FeatureExtractor()),
        audio.from_hf,
    ),
    "audio, of its authors": (PUBLISHED["EAT"], audio.from_hf),
    "two towers": (clip_folder, lambda source: load_towers(source)[0]),
    "two towers of open_clip": (
        lambda folder: open_clip_folder(folder, "ViT"),
        lambda source: load_towers(source)[0],
    ),
    "protein": (lambda folder: save(make_protein(), folder), protein_from_hf),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_model_on_the_hub_is_that_of_its_directory(name, hub):
    write, load = LOADED[name]
    write(hub[0])
    (hub[0] / "tf_model.h5").write_bytes(b"of another framework")
    for key, found in load("hf-hub:someone/model").state_dict().items():
        assert torch.equal(found, load(str(hub[0])).state_dict()[key])
    assert not (hub[1] / "tf_model.h5").exists()


def config(processor=None, **settings):
    def write(folder):
        (folder / "config.json").write_text(json.dumps(settings))
        if processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))

    return write


def write_clip(folder):
    clip_tokenizer().save_pretrained(folder)
    stock = transformers.CLIPConfig(text_config={"hidden_act": "silu"}, architectures=["CLIPModel"])
    stock.save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)


def write_open_clip(folder):
    clip_tokenizer().save_pretrained(folder)
    model = {"embed_dim": 24, "vision_cfg": {"layers": [3, 4, 6, 3]}, "text_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))


REFUSED = {
    "text": (config(model_type="gpt2", architectures=["GPT2LMHeadModel"]), text.from_hf, "not GPT2LMHeadModel"),
    "vision": (config(model_type="swin", architectures=["SwinModel"]), vision.from_hf, "not SwinModel"),
    "audio": (config(model_type="clap", architectures=["ClapModel"]), audio.from_hf, "ClapModel"),
    "two towers of open_clip": (write_open_clip, load_towers, "takes ViTs, not a ResNet"),
    "protein": (config(model_type="bert", architectures=["BertModel"]), protein_from_hf, "BertModel"),
    "text, an option": (
        config(model_type="bert", architectures=["BertModel"], hidden_act="silu"),
        text.from_hf,
        "activation 'silu'",
    ),
    "text, a number of outputs": (
        config(model_type="bert", architectures=["BertForQuestionAnswering"], id2label={0: "a", 1: "b", 2: "c"}),
        text.from_hf,
        "answers by 3 outputs",
    ),
    "text, a tower": (
        config(model_type="clip_text_model", architectures=["CLIPTextModel"], hidden_act="silu"),
        text.from_hf,
        "activation 'silu'",
    ),
    "vision, an option": (
        config(model_type="vit", architectures=["ViTModel"], hidden_act="silu"),
        vision.from_hf,
        "activation 'silu'",
    ),
    "vision, an image processor": (
        config({"image_processor_type": "ViTImageProcessor", "do_resize": False}, model_type="vit"),
        vision.from_hf,
        "an image processor that does not resize",
    ),
    "audio, an option": (
        config({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, model_type="wav2vec2", add_adapter=True),
        audio.from_hf,
        "the adapter after the encoder",
    ),
    "two towers": (write_clip, load_towers, "activation 'silu'"),
    "protein, an option": (
        config(model_type="esm", architectures=["EsmModel"], position_embedding_type="absolute", vocab_size=33),
        protein_from_hf,
        "not ESM-1b",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_before_its_weights_are_downloaded(name, hub):
    write, load, message = REFUSED[name]
    write(hub[0])
    for weights in ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"):
        (hub[0] / weights).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        load("hf-hub:someone/model")
    assert not [path for path in Path(hub[1]).rglob("*") if path.suffix in (".safetensors", ".bin")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no directory .*owner/name"),
        ({}, "holds no model of this library"),
        ({"config.json": '{"encoder'}, r"config\.json is not as it was written"),
        ({"config.json": '{"architecture": "vit"}'}, "holds no model of this library"),
        ({"config.json": '{"encoder": {}}'}, "There is no file of weights"),
    ],
)
def test_a_directory_that_holds_no_model_of_ours_says_why(content, words, tmp_path):
    folder = tmp_path / "model"
    for name, content_of in (content or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content_of)
    if content == {}:
        folder.mkdir()
    with pytest.raises(UserError, match=words):
        vision.ViT.from_pretrained(folder)
