"""The solved lattice: against the published series, and against folding chain by chain."""

import numpy as np
import pytest
import torch

from core import UserError
from examples.protein.lattice import STEPS, grow_walks, hydrophobic, landscape, pairs, solve


def turned(walk):
    """A walk's eight images on the lattice."""
    quarters = [STEPS.index(step) for step in np.diff(walk.astype(int))]
    return {tuple((turn + flip * q) % 4 for q in quarters) for turn in range(4) for flip in (1, -1)}


@pytest.mark.parametrize(
    "length, count", zip(range(2, 13), (1, 2, 5, 13, 36, 98, 272, 740, 2034, 5513, 15037), strict=True)
)
def test_walks_up_to_symmetry(length, count):
    """OEIS A046171, for one step less than residues."""
    walks = grow_walks(length)
    assert len(walks) == count and all(len(set(walk)) == length for walk in walks.tolist())
    assert set(np.diff(walks.astype(int)).flat) <= set(STEPS)


def test_no_walk_is_the_image_of_another():
    walks = grow_walks(8)
    assert len({min(turned(walk)) for walk in walks}) == len(walks)


@pytest.mark.parametrize("length, count", zip(range(2, 10), (1, 2, 4, 9, 22, 56, 147, 388), strict=True))
def test_walks_that_have_no_first_end(length, count):
    """OEIS A037245: a walk and its reverse are one."""
    walks = grow_walks(length)
    unrooted = {min(turned(walk) | turned(walk[::-1])) for walk in walks}
    assert len(unrooted) == count


def fold_by_hand(length):
    """Energy and number of ground states of every chain, by walking everywhere and counting contacts one by one."""
    walks = []

    def grow(walk):
        if len(walk) == length:
            walks.append(walk)
            return
        for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            site = (walk[-1][0] + x, walk[-1][1] + y)
            if site not in walk:
                grow([*walk, site])

    grow([(0, 0)])
    touching = [
        [(i, j) for j in range(length) for i in range(j - 1) if abs(w[i][0] - w[j][0]) + abs(w[i][1] - w[j][1]) == 1]
        for w in walks
    ]
    found = []
    for chain in range(2**length):
        energies = [-sum(chain >> i & chain >> j & 1 for i, j in contacts) for contacts in touching]
        lowest = [w for w, energy in zip(walks, energies, strict=True) if energy == min(energies)]
        straight = sum(len({x for x, _ in w}) == 1 or len({y for _, y in w}) == 1 for w in lowest)
        found.append((min(energies), (len(lowest) - straight) // 8 + straight // 4))  # a line has four images only
    return found


@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_every_chain_folds_as_by_hand(length):
    found = solve(length)
    assert list(zip(found.energy.tolist(), found.degeneracy.tolist(), strict=True)) == fold_by_hand(length)


@pytest.mark.parametrize("length, count", zip(range(4, 15), (4, 0, 7, 10, 7, 6, 6, 62, 87, 173, 386), strict=True))
def test_designing_chains(length, count):
    """Irbäck and Troein 2002, table 1; and the ground states listed have the energy and the number that are stated."""
    found = solve(length)
    assert (found.degeneracy == 1).sum() == count
    i, j = pairs(length)
    h = hydrophobic(found.ground[:, 0], length)
    energy = -(h[:, i] * h[:, j] * found.contacts[found.ground[:, 1]]).sum(axis=1)
    assert (energy == found.energy[found.ground[:, 0]]).all()
    states = np.bincount(found.ground[:, 0], weights=found.ways[found.ground[:, 1]], minlength=2**length)
    assert (states == np.where(found.degeneracy <= 64, found.degeneracy, 0)).all()


def test_a_chain_folds_as_its_reverse():
    found, weights = solve(9), 1 << np.arange(9)[::-1]
    reverse = hydrophobic(np.arange(2**9), 9) @ weights
    assert (found.degeneracy[reverse] == found.degeneracy).all() and (found.energy[reverse] == found.energy).all()


def test_kept_on_disk_whole_and_made_anew_where_damaged(tmp_path):
    first = landscape(8, tmp_path)
    path = tmp_path / "hp-8.npz"
    written = path.stat().st_mtime_ns
    again = landscape(8, tmp_path)
    assert path.stat().st_mtime_ns == written and [file.name for file in tmp_path.iterdir()] == ["hp-8.npz"]
    sound = path.read_bytes()
    middle = len(sound) // 2
    for damaged in (b"", sound[:middle], sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"hp-8\.npz is damaged"):
            again = landscape(8, tmp_path)
        assert all((a == b).all() for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    landscape(7, tmp_path)
    (tmp_path / "hp-7.npz").replace(path)
    with pytest.warns(UserWarning, match="is not of 8-mers"):
        assert landscape(8, tmp_path).length == 8


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="Chains of 17 residues: the lattice is solved for 4 to 16"):
        landscape(17, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        landscape(6, tmp_path / "file")


def test_the_stated_fold_is_found():
    found = solve(10)
    i, j = pairs(10)
    shown = np.arange(0, len(found.contacts), 7)
    log_odds = torch.full((len(shown), 10, 10), -3.0)
    log_odds[:, i, j] += 6.0 * torch.from_numpy(found.contacts[shown])
    assert (found.decode(log_odds).numpy() == shown).all()
