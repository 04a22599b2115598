"""Precision against a count by hand; the two commands, from files to files."""

import math
from itertools import combinations

import gemmi
import numpy as np
import pytest
import torch

from core import IGNORE, EncoderConfig
from core.experiments import predict_command
from examples.protein.alphabet import Alphabet
from examples.protein.esm import ESM, ESMConfig
from examples.protein.evaluate import Arguments as Evaluate
from examples.protein.evaluate import evaluate
from examples.protein.outputs import file_names, write_whole
from examples.protein.precision import precision_at
from examples.protein.predict import Arguments as Predict
from examples.protein.predict import predict

NAMES = ["ALA", "GLY", "LEU", "SER", "LYS", "GLU", "TRP"] * 6


def symmetric(n, seed):
    upper = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).triu()
    return upper + upper.triu(1).T


def test_precision_by_hand():
    target, probabilities = torch.zeros(40, 40), torch.zeros(40, 40)
    right = [(0, 30), (1, 29), (3, 28), (5, 15), (7, 13)]
    wrong = [(2, 30), (4, 34), (6, 20)]
    near = [(8, 9), (10, 15)]  # count nowhere
    for rank, (i, j) in enumerate([*near, right[0], wrong[0], right[1], wrong[2], right[3], right[4], wrong[1]]):
        probabilities[i, j] = probabilities[j, i] = 1 - rank / 10
    for i, j in right + near:
        target[i, j] = target[j, i] = 1
    found = precision_at(probabilities, target)
    long = found["long"]
    assert (long.contacts, long.pairs, long.length) == (3, 16 * 17 // 2, 40)
    assert long.surest[:4].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])
    assert found["medium"].at(5) == 0 and found["short"].surest[1] == 1 and found["short"].contacts == 2
    target[2, 30] = target[30, 2] = IGNORE  # not known: neither right nor wrong
    assert precision_at(probabilities, target)["long"].surest[:3].tolist() == pytest.approx([1, 1, 2 / 3])


@pytest.mark.parametrize("n, seed", [(30, 0), (61, 1), (100, 2)])
def test_precision_is_that_of_counting_pair_by_pair(n, seed):
    probabilities = symmetric(n, seed)
    target = (symmetric(n, seed + 10) < 0.3).float()
    lost = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.1
    target[lost] = target[:, lost] = IGNORE
    for name, (first, last) in {"short": (6, 11), "medium": (12, 23), "long": (24, n)}.items():
        known = [(i, j) for i, j in combinations(range(n), 2) if first <= j - i <= last and not (lost[i] or lost[j])]
        known.sort(key=lambda pair: -probabilities[pair])
        found = precision_at(probabilities, target)[name]
        for part in (5, 2, 1):
            picked = known[: n // part]
            assert found.at(part) == pytest.approx(sum(target[pair].item() for pair in picked) / len(picked))
        assert found.random == pytest.approx(np.mean([target[pair].item() for pair in known]))
        perfect = precision_at(target, target)[name]
        assert perfect.at(5) == pytest.approx(min(1, perfect.contacts / min(n // 5, len(known))))


def test_precision_where_there_are_few_pairs_or_none():
    target = torch.ones(26, 26)
    found = precision_at(symmetric(26, 0), target)
    assert found["long"].pairs == 3 and found["long"].at(1) == found["long"].at(5) == 1
    none = precision_at(symmetric(8, 0), target[:8, :8])
    assert none["long"].pairs == 0 and math.isnan(none["long"].at(1)) and math.isnan(none["long"].random)
    assert none["short"].pairs == 3
    dark = precision_at(symmetric(40, 0), torch.full((40, 40), float(IGNORE)))
    assert all(math.isnan(one.at(2)) for one in dark.values())


def test_file_names_are_safe_and_differ():
    names = ["sp|P1|A", "sp_P1_A", "SP|p1|a", "../../etc/passwd", "..", "x" * 300, "x" * 299, "Zoë"]
    found = file_names(names)
    assert found[:5] == ["sp_P1_A", "sp_P1_A-2", "SP_p1_a-3", "etc_passwd", "unnamed"] and found[7] == "Zo"
    assert len({name.lower() for name in found}) == len(names) and max(map(len, found)) < 110


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def half(path):
        path.write_text("half")
        raise KeyboardInterrupt

    write_whole(tmp_path / "file", lambda path: path.write_text("whole"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", half)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a tiny model with random weights."""
    torch.manual_seed(0)
    model = ESM(ESMConfig(encoder=EncoderConfig(dim=32, depth=2, heads=4, norm_eps=1e-5, rotary="1d")))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder := tmp_path_factory.mktemp("esm"))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A place with two proteins, and a structure of two chains of one sequence that makes a hairpin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.fasta").write_text(">sp|P1|ONE of two\nMKVLAWGIHDSTPNQERYFC\n>two\nGIVEQCCTSICSL*\n")
    structure, held = gemmi.Structure(), gemmi.Model(1)
    for name, missing in (("A", (0, 9, 10)), ("B", (0,))):
        chain = gemmi.Chain(name)
        for k in sorted(set(range(len(NAMES))) - set(missing)):
            residue = gemmi.Residue()
            residue.name, residue.seqid = NAMES[k], gemmi.SeqId(k + 1, " ")
            residue.entity_type = gemmi.EntityType.Polymer
            atom = gemmi.Atom()
            atom.name, atom.element = "CA", gemmi.Element("C")
            atom.pos = gemmi.Position(3.4 * min(k, len(NAMES) - 1 - k), 5.0 * (2 * k >= len(NAMES)), k % 2)
            residue.add_atom(atom)
            chain.add_residue(residue)
        held.add_chain(chain)
    structure.add_model(held)
    structure.setup_entities()
    for entity in structure.entities:
        entity.full_sequence = NAMES
    structure.write_pdb("pin.pdb")
    structure.assign_label_seq_id()
    structure.make_mmcif_document().write_file("pin.cif")
    return tmp_path


def run(command, arguments, *words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
    predict_command("command", arguments, command)


def test_predict_writes_what_the_model_reads(model, here, monkeypatch, capsys):
    run(predict, Predict, model, "two.fasta", "--out", "found", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["sp|P1|ONE: 20 residues", "two: 13 residues"]
    files = ["sp_P1_ONE.npz", "sp_P1_ONE.png", "two.npz", "two.png"]
    assert sorted(path.name for path in (here / "found").iterdir()) == files
    ids, mask = Alphabet().encode(["MKVLAWGIHDSTPNQERYFC", "GIVEQCCTSICSL"])
    with torch.no_grad():
        expected = ESM.from_run(model).read(ids, mask)
    for row, (name, n) in enumerate((("sp_P1_ONE", 20), ("two", 13))):
        with np.load(f"found/{name}.npz") as arrays:
            assert set(arrays) == {"embeddings", "contacts"}
            np.testing.assert_allclose(arrays["embeddings"], expected.embeddings[row, :n], atol=1e-5)
            np.testing.assert_allclose(arrays["contacts"], expected.contacts[row, :n, :n], atol=1e-5)


def test_evaluate_tells_each_chain_of_its_own_once(model, here, monkeypatch, capsys):
    run(evaluate, Evaluate, model, "pin.pdb", "pin.cif", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "pin.pdb chain B: 41 of 42 residues resolved" in said and "chain A" not in said
    assert "mean of 2 chains" in said
    of_pdb, of_cif, _ = (part.splitlines()[1:4] for part in said.split("  range")[1:])
    assert of_pdb == of_cif
    assert sorted(path.name for path in (here / "predictions").iterdir()) == ["pin-B-2.png", "pin-B.png"]
    run(evaluate, Evaluate, model, "pin.pdb", "--chain", "A", "--patterns", "Local(64)", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "pin.pdb chain A: 39 of 42 residues resolved" in said and "mean" not in said
    (line,) = [line for line in said.splitlines() if "long" in line]
    seen = set(range(42)) - {0, 9, 10}
    assert int(line.split()[2]) == sum(j - i >= 24 for i, j in combinations(sorted(seen), 2))


@pytest.mark.parametrize(
    "command, words, sentence",
    [
        ("predict", ["two.fasta", "--patterns", "Far(3)"], "'Far(3)' is not a pattern"),
        ("predict", ["pin.pdb"], "pin.pdb, line 1: a sequence needs a header"),
        ("predict", ["two.fasta", "--out", "two.fasta"], "two.fasta/sp_P1_ONE.npz cannot be written: File exists"),
        ("evaluate", [], "Name at least one structure"),
        ("evaluate", ["pin.pdb", "two.fasta"], "two.fasta is not a structure"),
        ("evaluate", ["pin.pdb", "--chain", "Q"], "pin.pdb has no protein chain Q: there are A, B."),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(model, here, monkeypatch, capsys, command, words, sentence):
    before = sorted(here.iterdir())
    function, arguments = {"predict": (predict, Predict), "evaluate": (evaluate, Evaluate)}[command]
    with pytest.raises(SystemExit) as end:
        run(function, arguments, model, *words, monkeypatch=monkeypatch)
    said = capsys.readouterr()
    assert end.value.code == 1 and sentence in said.err and "Traceback" not in said.err and not said.out
    assert said.err.count("\n") == 1 and sorted(here.iterdir()) == before


def test_a_misspelt_model_is_told_at_once(here, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(predict, Predict, "runs/no", "two.fasta", monkeypatch=monkeypatch)
    assert end.value.code == 1 and "There is no directory runs/no" in capsys.readouterr().err


def test_proteins_longer_than_those_of_training_are_told(model):
    with pytest.warns(UserWarning, match="A sequence of 1,030 residues: the model saw at most 1,022"):
        assert ESM.from_run(model).read_sequence("MKVLA" * 206).contacts.shape == (1030, 1030)
