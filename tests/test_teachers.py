"""Teachers of images and texts, to be distilled: what they are given, and which are refused."""

import pytest
import torch
from plain import train_plainly
from small_runs import TEXTS

from core import EncoderConfig, UserError
from vision import ViT, ViTConfig
from vision.model import Preprocess
from vision.teacher import Teacher, TokenTeacher, load_teacher
from vision.train import VISION

SMALL = EncoderConfig(dim=16, depth=1, heads=2)
OURS = ViTConfig(
    image_size=8, patch_size=4, encoder=SMALL, classes=2, labels=("a", "b"),
    preprocess=Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)),
)  # fmt: skip


def theirs(**changes):
    torch.manual_seed(0)
    return ViT(
        ViTConfig(**{"image_size": 8, "patch_size": 4, "encoder": SMALL, "classes": 2, "labels": ("b", "a"), **changes})
    )


def normalised(pixels, preprocess):
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (preprocess.mean, preprocess.std))
    return (pixels - mean) / std


def test_a_teacher_sees_the_images_in_its_own_normalisation_and_size():
    pixels = torch.rand(3, 3, 8, 8)
    model = theirs().eval()
    given = normalised(pixels, OURS.preprocess)
    expected = model(normalised(pixels, model.config.preprocess))
    torch.testing.assert_close(Teacher(model, OURS)(given), expected)
    torch.testing.assert_close(Teacher(model, OURS)([*given]), expected, rtol=1e-4, atol=1e-5)
    larger = theirs(image_size=16).eval()
    resized = torch.nn.functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True)
    expected = larger(normalised(resized, larger.config.preprocess))
    torch.testing.assert_close(Teacher(larger, OURS)(given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, patch, stride", [(8, 4, None), (16, 8, None), (16, 8, 4), (11, 5, 3)])
def test_a_teacher_of_tokens_makes_as_many_as_the_model(size, patch, stride):
    """Whatever its patches are: it sees images at the size that has as many of them."""
    pixels = torch.rand(3, 3, 8, 12)
    model = theirs(image_size=size, patch_size=patch, stride=stride).eval()
    teacher, given = TokenTeacher(model, OURS), normalised(pixels, OURS.preprocess)
    tokens = teacher.encoder(teacher.tokens(given))
    assert tokens.grid == (2, 3)
    step = stride or patch
    own = normalised(pixels, model.config.preprocess)
    if patch != 4:
        own = torch.nn.functional.interpolate(own, (patch + step, patch + 2 * step), mode="bicubic", antialias=True)
    torch.testing.assert_close(tokens.x, model.encode(own).x, rtol=1e-4, atol=1e-4)
    ragged = teacher.encoder(teacher.tokens([*given]))
    torch.testing.assert_close(ragged.x[0], tokens.x.flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_a_saved_teacher_is_loaded_with_our_order_of_classes(tmp_path):
    model = theirs().eval()
    model.save_pretrained(tmp_path / "teacher")
    images = torch.randn(2, 3, 8, 8)
    loaded = load_teacher(str(tmp_path / "teacher"), OURS)
    torch.testing.assert_close(loaded(images), Teacher(model, OURS)(images)[:, [1, 0]])
    assert load_teacher(None, OURS) is None
    theirs(channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(UserError, match=r"takes images of 1 channels, and the model of 3"):
        load_teacher(str(tmp_path / "grey"), OURS)


def test_a_run_teaches_a_smaller_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits = ["digits", "--train.steps", "4", "--train.batch-size", "8", "--train.warmup", "1", "--model.heads", "1"]
    digits += ["--model.dim", "8", "--model.depth", "1", "--data.validation-fraction", "0.8"]
    train_plainly(VISION, [*digits, "--out", "teacher"])
    train_plainly(VISION, [*digits, "--out", "pupil", "--distill.teacher", "teacher"])
    assert "digits: test accuracy" in capsys.readouterr().out
    for words, said in (
        (["--distill.weight", "0.1"], "The options --distill.* have no effect without --distill.teacher"),
        (["--distill.teacher", "nowhere/at-all"], "There is no directory nowhere/at-all"),
    ):
        with pytest.raises(SystemExit) as end:
            train_plainly(VISION, [*digits, "--out", "other", *words])
        assert end.value.code and said in capsys.readouterr().err


def test_a_teacher_of_texts_reads_the_same_tokens(tmp_path, monkeypatch, capsys):
    from text.train import TEXT

    monkeypatch.chdir(tmp_path)
    rows = [f"{'apple pear' if n % 2 else 'saw drill'} {n},{n % 2}" for n in range(30)]
    (tmp_path / "list.csv").write_text("\n".join(["text,label", *rows]))
    words = ["manifest", "--data.path", "list.csv", *TEXTS]
    train_plainly(TEXT, [*words, "--out", "teacher"])
    tokenizer = ["--data.tokenizer.path", "teacher/tokenizer.json"]
    train_plainly(TEXT, [*words, "--out", "pupil", "--distill.teacher", "teacher", *tokenizer])
    assert "manifest: test accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        other = ["--data.tokenizer.kind", "bpe", "--distill.teacher", "teacher"]
        train_plainly(TEXT, [*words, "--out", "other", *other])
    assert "has another tokenizer, so that it would read other texts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        numbers = ["--data.target", "number", "--distill.teacher", "teacher"]
        train_plainly(TEXT, [*words, "--out", "other", *numbers])
    assert "--distill.teacher has no effect where one class is not to be predicted" in capsys.readouterr().err
