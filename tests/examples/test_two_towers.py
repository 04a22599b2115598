"""CLIP and SigLIP of transformers and open_clip say on our two towers what they say there."""

import csv
import json

import open_clip
import pytest
import torch
import transformers
from image_text_peers import (
    LENGTH,
    OPEN_CLIP,
    TEXTS,
    WHOLE,
    clip_folder,
    clip_tokenizer,
    open_clip_folder,
    siglip_folder,
    write_siglip_tokenizer,
)
from PIL import Image

from core import UserError
from examples.multimodal.pretrained import load_pretrained
from examples.multimodal.retrieve import Arguments as RetrieveArguments
from examples.multimodal.retrieve import retrieve
from examples.multimodal.two_towers_hf import from_hf
from examples.multimodal.zero_shot import Arguments, zero_shot
from text import Tokenizer

FOLDERS = {"CLIP": clip_folder, "SigLIP": siglip_folder}


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def images(count=3, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def framed(tokenizer):
    return [torch.tensor(tokenizer.frame(ids)) for ids in tokenizer.encode(TEXTS)]


def filled(texts, filler):
    """As stock tokenizers pad texts."""
    return torch.stack([torch.nn.functional.pad(ids, (0, LENGTH - len(ids)), value=filler) for ids in texts])


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_equal_those_of_transformers(name, tmp_path):
    peer = FOLDERS[name](tmp_path)
    model, tokenizer = load_pretrained(str(tmp_path))
    texts, pixels = framed(tokenizer), images()
    full = filled(texts, tokenizer.pad)
    mask = torch.arange(LENGTH) < torch.tensor([len(ids) for ids in texts])[:, None]
    with torch.no_grad():
        stock = peer(input_ids=full, pixel_values=pixels)
        for given in ((full,), (texts,), (full.where(mask, 7), mask)):
            found = model.logits(*model(pixels, *given))
            assert_close(found, stock.logits_per_image)
        wanted = stock.logits_per_image
        wanted = wanted.sigmoid() if name == "SigLIP" else wanted.softmax(dim=1)
        assert_close(model.probabilities(found), wanted)
        alone = torch.cat([model.of_texts([ids]) for ids in texts])
        assert_close(alone, model.of_texts(texts))
        for ours, theirs in zip(model(pixels, texts), (stock.image_embeds, stock.text_embeds), strict=True):
            assert_close(torch.nn.functional.normalize(ours[:, : model.width], dim=1), theirs)
    assert_close(from_hf(peer, filler=tokenizer.pad).of_texts(texts), model.of_texts(texts))


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_logits_equal_those_of_open_clip(name, tmp_path):
    peer = open_clip_folder(tmp_path, name)
    model, tokenizer = load_pretrained(str(tmp_path))
    texts, pixels = framed(tokenizer), images(2, model.config.image.image_size)
    with torch.no_grad():
        image, text, scale, *bias = peer(pixels, filled(texts, tokenizer.pad if bias_of(peer) else 0))
        found = model.logits(*model(pixels, texts))
        assert_close(found, scale * image @ text.T + sum(bias))
    assert model.config.image.preprocess.mean == (0.5, 0.4, 0.3)
    again, _ = _saved(model, tokenizer, tmp_path / "ours")
    assert_close(again.logits(*again(pixels, texts)), found)


def bias_of(peer):
    return getattr(peer, "logit_bias", None) is not None


def _saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return load_pretrained(str(folder))


def test_clips_own_vocabulary_is_read_as_open_clip_reads_it(tmp_path):
    clip_tokenizer(WHOLE).save_pretrained(tmp_path)
    stock, ours = open_clip.SimpleTokenizer(context_length=40), Tokenizer.load(tmp_path, extend=False)
    for text in [*TEXTS, "naïve Ünïcode; 日本語 (x)", "x1y22 don't  stop\n2023", "🙂 and so on…"]:
        ids = ours.frame(ours.encode([text])[0])
        assert torch.nn.functional.pad(torch.tensor(ids), (0, 40 - len(ids))).tolist() == stock(text)[0].tolist()


def test_siglips_texts_lose_case_and_punctuation(tmp_path):
    pieces = write_siglip_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path, extend=False)
    spelled = [
        [pieces[number] for number in ids] for ids in tokenizer.encode(["A  Photo, of: 2 CATS!", "blue_dog", ""])
    ]
    assert spelled == [
        ["▁a", "▁photo", "▁of", "▁", "2", "▁cat", "s"],
        ["▁blue", "d", "o", "g"],  # as transformers does; open_clip makes a space of it
        [],
    ]
    assert (tokenizer.before, tokenizer.after, tokenizer.pad) == ([], [1], 1)
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "spiece.model").unlink()
    assert Tokenizer.load(tmp_path, extend=False).encode(["A Photo!"]) == tokenizer.encode(["a photo"])


def write_images(folder, count=3, size=32):
    folder.mkdir()
    for number, pixels in enumerate(((images(count, size) + 2) * 60).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", FOLDERS)
def test_zero_shot_says_what_the_stock_model_says(name, tmp_path, capsys):
    peer = FOLDERS[name](tmp_path / "model")
    files = write_images(tmp_path / "images")
    zero_shot(
        Arguments(
            model=str(tmp_path / "model"), image=tmp_path / "images", texts=tuple(TEXTS), top=1, out=tmp_path / "out"
        )
    )
    rows = list(csv.DictReader((tmp_path / "out" / "probabilities.csv").open()))
    found = torch.tensor([[float(row[text]) for text in TEXTS] for row in rows])
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")(
        [Image.open(file) for file in files], return_tensors="pt"
    )["pixel_values"]
    tokenizer = Tokenizer.load(tmp_path / "model", extend=False)
    with torch.no_grad():
        logits = peer(input_ids=filled(framed(tokenizer), tokenizer.pad), pixel_values=pixels).logits_per_image
    assert_close(found, logits.sigmoid() if name == "SigLIP" else logits.softmax(dim=1))
    lines = capsys.readouterr().out.splitlines()
    for line, row, file in zip(lines, found, files, strict=False):
        best = int(row.argmax())
        assert line == f"{file}: {TEXTS[best]} {row[best]:.1%} ({tmp_path / 'out' / file.stem}.png)"
        assert Image.open(tmp_path / "out" / f"{file.stem}.png").size[0] > 800


def test_templates_are_averaged_on_the_sphere(tmp_path):
    clip_folder(tmp_path / "model")
    write_images(tmp_path / "images", 1)
    templates = ("{}", "a photo of {}.")
    given = {"model": str(tmp_path / "model"), "image": tmp_path / "images", "texts": ("cat", "dog")}
    zero_shot(Arguments(**given, templates=templates, out=tmp_path / "out"))
    (row,) = csv.DictReader((tmp_path / "out" / "probabilities.csv").open())
    model, tokenizer = load_pretrained(str(tmp_path / "model"))
    with torch.no_grad():
        vectors = [
            model.of_texts([torch.tensor(tokenizer.frame(ids)) for ids in tokenizer.encode([each.format(text)])])
            for text in ("cat", "dog")
            for each in templates
        ]
        means = torch.cat(vectors).unflatten(0, (2, 2)).mean(dim=1)
        means = means / means.norm(dim=1, keepdim=True) * vectors[0].norm()
        pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")(
            Image.open(tmp_path / "images" / "0.png"), return_tensors="pt"
        )["pixel_values"]
        wanted = model.probabilities(model.logits(model.of_images(pixels), means))[0]
    assert_close(torch.tensor([float(row["cat"]), float(row["dog"])]), wanted)


def test_retrieval_finds_an_image_by_itself_and_leaves_broken_files_out(tmp_path, capsys):
    clip_folder(tmp_path / "model")
    files = write_images(tmp_path / "images", 4)
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG")
    given = {"model": str(tmp_path / "model"), "folder": tmp_path / "images", "texts": ("a cat",)}
    with pytest.warns(UserWarning, match="broken.png .* It is left out"):
        retrieve(RetrieveArguments(**given, images=(files[2],), top=10, out=tmp_path / "out"))
    rows = list(csv.DictReader((tmp_path / "out" / "nearest.csv").open()))
    assert [row["query"] for row in rows] == ["a cat"] * 4 + [str(files[2])] * 4
    assert rows[4]["image"] == str(files[2]) and float(rows[4]["cosine"]) == 1
    assert {row["image"] for row in rows} == set(map(str, files))
    cosines = [float(row["cosine"]) for row in rows[:4]]
    assert cosines == sorted(cosines, reverse=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a cat.png", "2.png", "nearest.csv"}


FAULTS = {
    "a ResNet": ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "takes ViTs, not a ResNet"),
    "a text tower of transformers": ({"text_cfg": {"hf_model_name": "roberta-base"}}, "the text tower 'roberta-base'"),
    "an option that it does not know": ({"vision_cfg": {"scale_heads": True}}, "scale_heads = True of vision_cfg"),
    "a pooling that it does not know": ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool = True"),
    "a text tower that is not causal": ({"text_cfg": {"no_causal_mask": True}}, "pool_type = 'argmax'"),
    "a network of timm that is no ViT": (
        {"vision_cfg": {"timm_model_name": "test_convnext", "timm_proj": "linear"}},
        "not ConvNeXt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_no_equal_is_refused_before_weights_are_read(fault, tmp_path):
    changes, message = FAULTS[fault]
    clip_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 24, **changes}}))
    with pytest.raises(UserError, match=message):  # there are no weights
        load_pretrained(str(tmp_path))


def test_mistakes_are_one_sentence(tmp_path):
    clip_folder(tmp_path / "model")
    write_images(tmp_path / "images", 1)
    given = {"model": str(tmp_path / "model"), "image": tmp_path / "images", "texts": ("cat",)}
    with pytest.raises(UserError, match="Name at least one text"):
        zero_shot(Arguments(**given | {"texts": ()}))
    with pytest.raises(UserError, match=r"The template 'a photo' has no \{\}"):
        zero_shot(Arguments(**given, templates=("a photo",)))
    with pytest.raises(UserError, match="There is no image"):
        zero_shot(Arguments(**given | {"image": tmp_path / "nowhere.png"}))
    with pytest.raises(UserError, match="Name what to look for"):
        retrieve(RetrieveArguments(model=given["model"], folder=tmp_path / "images"))
    with pytest.raises(UserError, match="not from BertModel"):
        from_hf(transformers.BertModel(transformers.BertConfig(hidden_size=12, num_hidden_layers=1)))
