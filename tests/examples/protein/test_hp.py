"""The example domain: its split, its model's conventions, its objective, and a short run by the command line."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import IGNORE, EncoderConfig, Objective, from_dict, to_dict
from core.experiments import train_command
from core.training.sampling import SeededDataset
from examples.protein.data import HPLattice, collate, motif
from examples.protein.lattice import pairs
from examples.protein.model import FoldConfig, FoldModel
from examples.protein.objective import Contacts, precision
from examples.protein.train import PROTEIN

TINY = FoldConfig(pair_dim=8, rounds=2, encoder=EncoderConfig(dim=16, depth=2, heads=2, rotary="1d"))
MASK = torch.arange(12) < torch.tensor([12, 7, 1])[:, None]
LENGTHS = (8, 9, 10, 11, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lattice")


@pytest.fixture
def data(folder):
    return HPLattice(path=folder, lengths=LENGTHS, test_lengths=(11, 12), degeneracy=8, test_fraction=0.3).read()


def make_model(config=TINY):
    torch.manual_seed(0)
    model = FoldModel(config)
    with torch.no_grad():
        model.bias.weight.mul_(100)  # as if trained
        model.embed.weight.mul_(50)
    return model


def make_residues():
    return torch.randint(2, MASK.shape, generator=torch.Generator().manual_seed(0))


def contacts_of(chain):
    return [tuple(pair) for pair in (chain.contacts > 0).nonzero().tolist()]


def text(chain):
    letters = "".join("PH"[r] for r in chain.residues)
    return min(letters, letters[::-1])


def test_the_tests_chains_and_folds_are_new(data):
    assert len(data.test) > 20 and len(data.train) > 10 * len(data.test)
    counts = Counter(text(chain) for part in data.parts().values() for chain in part.chains)
    assert set(counts.values()) == {1}
    # Every ground state of every training chain, found again from the tables.
    seen = set()
    for chain in data.train.chains:
        found, n = data.landscapes[len(chain.residues)], len(chain.residues)
        i, j = pairs(n)
        energy = (found.contacts * (chain.residues[i] * chain.residues[j]).numpy()).sum(axis=1)
        for fold in found.contacts[energy == energy.max()]:
            seen.add(motif(zip(i[fold].tolist(), j[fold].tolist(), strict=True)))
    tested, validated = ({motif(contacts_of(c)) for c in part.chains} for part in (data.test, data.validation))
    assert len(tested) > 5 and not tested & seen
    assert len(validated) > 1 and not validated & (seen | tested)
    assert tested == {motif(contacts_of(chain.reversed())) for chain in data.test.chains}


def test_the_split_is_the_same_each_time(data, folder):
    again = HPLattice(path=folder, lengths=LENGTHS, test_lengths=(11, 12), degeneracy=8, test_fraction=0.3).read()
    assert [text(chain) for chain in again.test.chains] == [text(chain) for chain in data.test.chains]


def test_a_chain_has_the_contacts_of_its_ground_states(data):
    for chain in [*data.test.chains, *data.train.chains[::50]]:
        n = len(chain.residues)
        found, (i, j) = data.landscapes[n], pairs(n)
        assert (torch.tensor([i.tolist(), j.tolist()]) == (chain.contacts != IGNORE).nonzero().T).all()
        number = sum(int(r) << k for k, r in enumerate(chain.residues))
        # All ground states have as many H-H contacts, so their mean has.
        both = chain.residues[i] * chain.residues[j]
        assert (chain.contacts[i, j] * both).sum() == pytest.approx(-found.energy[number], rel=1e-5)


def test_training_reads_chains_from_either_end(data):
    chains = SeededDataset(data.train, 0)
    keys = [(epoch, 3) for epoch in range(20)]
    given = [chain.residues.tolist() for chain in chains.__getitems__(keys)]
    chain = data.train.chains[3]
    assert {tuple(g) for g in given} == {tuple(chain.residues.tolist()), tuple(chain.residues.flip(0).tolist())}
    back = chain.reversed().reversed()
    assert torch.equal(back.residues, chain.residues) and torch.equal(back.contacts, chain.contacts)
    turned = {(len(chain.residues) - 1 - j, len(chain.residues) - 1 - i) for i, j in contacts_of(chain)}
    assert set(contacts_of(chain.reversed())) == turned


def test_the_model_learns_everywhere_and_comes_back_from_disk(tmp_path):
    model, residues = make_model(), make_residues()
    logits = model(residues, MASK)
    assert logits.shape == (3, 12, 12) and torch.equal(logits, logits.mT)
    logits[0].triu().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert from_dict(FoldConfig, to_dict(TINY)) == TINY
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(FoldModel.from_pretrained(tmp_path)(residues, MASK), logits, rtol=0, atol=0)
    assert model.encode(residues, MASK).x.shape == model.tokens(residues, MASK).x.shape == (3, 12, 16)


def test_a_chain_alone_or_in_any_batch():
    model, residues = make_model().eval(), make_residues()
    with torch.no_grad():
        together = model(residues, MASK)
        for row, length in enumerate(MASK.sum(dim=1).tolist()):
            for mask in (None, torch.ones(1, length, dtype=torch.bool)):
                alone = model(residues[row : row + 1, :length], mask)[0]
                torch.testing.assert_close(alone, together[row, :length, :length], rtol=0, atol=1e-5)
        other = torch.where(MASK, residues, 1 - residues)
        real = MASK[:, :, None] & MASK[:, None]
        torch.testing.assert_close(model(other, MASK)[real], together[real], rtol=0, atol=0)


def test_pairs_bias_the_next_round():
    model, residues = make_model().eval(), make_residues()
    once = FoldModel(replace(TINY, rounds=1)).eval()
    once.load_state_dict(model.state_dict())
    with torch.no_grad():
        biased, first = model(residues), once(residues)
        model.bias.weight.zero_()
        unbiased = model(residues)
    assert (biased - unbiased).abs().max() > 1e-3 and (unbiased - first).abs().max() > 1e-3


def test_only_the_order_along_the_chain_tells_ends_apart():
    """Read from the other end another chain, unless it is a palindrome: the model does not know which is which."""
    model, residues = make_model().eval(), make_residues()
    with torch.no_grad():
        assert (model(residues.flip(1)) - model(residues).flip(1, 2)).abs().max() > 1e-4


def test_precision_counts_the_surest_long_range_pairs():
    targets = torch.full((2, 16, 16), float(IGNORE))
    i, j = pairs(15)
    targets[:, i, j] = 0.0
    logits = torch.zeros(2, 16, 16)
    logits[:, 0, 3], logits[:, 4, 9] = 9.0, 9.0  # near ones do not count
    for rank, (a, b) in enumerate([(0, 7), (1, 8), (2, 9), (3, 10)]):
        logits[:, a, b] = 5.0 - rank
    targets[0, 0, 7] = targets[0, 2, 9] = targets[0, 3, 10] = targets[1, 3, 10] = 1.0
    assert precision(logits, targets, torch.tensor([15, 15])).tolist() == pytest.approx([2 / 3, 0])


def test_losses_add_up_over_pairs_that_can_touch(data):
    objective, model = Contacts(data.landscapes), make_model().eval()
    assert isinstance(objective, Objective)
    batch = collate(data.test.chains[:6])
    parts = [collate(data.test.chains[k : k + 2]) for k in (0, 2, 4)]
    assert objective.count(batch) == sum(len(pairs(len(chain.residues))[0]) for chain in data.test.chains[:6])
    total = sum(objective.loss(model, part) for part in parts)
    torch.testing.assert_close(objective.loss(model, batch), total)
    results = objective.evaluate(model, batch)
    assert objective.metrics(results)["loss"] == pytest.approx((total / objective.count(batch)).item(), rel=1e-5)
    perfect = objective.metrics(results | {"logits": 20 * batch.targets.clamp(min=0) - 10})
    assert perfect["folded"] == 1 and perfect["loss"] < 1e-3
    upside = objective.metrics(results | {"logits": 10 - 20 * batch.targets.clamp(min=0)})
    assert upside["folded"] == 0 and upside["precision"] == 0


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (["--data.degeneracy", "65"], "--data.degeneracy must be from 1 to 64, not 65"),
        (["--data.test-lengths", "17"], "--data.test-lengths must be from 4 to 16, not 17"),
        (["--data.test-fraction", "1"], "--data.test-fraction must be less than 1, not 1.0"),
        (["--data.lengths", "6", "--data.test-lengths", "5"], "--data.test-lengths must be more than 8"),
        (["--model.rounds", "0"], "rounds must be at least 1"),
        (["--init", "runs/other"], "leave out --init"),
    ],
)
def test_mistakes_get_one_sentence(wrong, sentence, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = (
        ["--data.lengths", "10", "11", "--data.test-lengths", "11"]
        if wrong[0].startswith(("--model", "--init"))
        else []
    )
    with pytest.raises(SystemExit) as end:
        train_command(PROTEIN, ["hp", "--data.path", str(folder), *small, *wrong])
    error = capsys.readouterr().err
    assert end.value.code == 1 and sentence in error and "Traceback" not in error


def test_a_short_run_leaves_a_page(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lengths = ["--data.lengths", *map(str, LENGTHS), "--data.test-lengths", "11", "12"]
    short = ["--train.steps", "30", "--train.warmup", "5", "--train.eval-every", "30", "--train.batch-size", "32"]
    small = ["--model.rounds", "2", "--model.depth", "2", "--model.dim", "32"]
    train_command(PROTEIN, ["hp", "--data.path", str(folder), *lengths, *short, *small])
    summary = json.loads(Path("runs/hp/summary.json").read_text())
    assert 0 < summary["baseline"]["logistic regression"] < 1 and 0 < summary["metrics"]["precision"] < 1
    page = Path("runs/hp/report.html").read_text()
    assert "Predicted folds" in page and "Calibration" in page
    assert f"precision {summary['metrics']['precision']:.2%} (logistic regression:" in capsys.readouterr().out
    assert FoldModel.from_run("runs/hp").config.encoder.dim == 32
