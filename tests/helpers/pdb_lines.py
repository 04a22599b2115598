"""Lines of PDB files, for tests of readers."""

import gzip
import math

from examples.protein.structure import read_structure

# Radius, turn and rise of each atom of an alpha helix; a residue is 100 degrees and 1.5 angstrom from the one before.
# Radius, turn and rise of each atom of an alpha helix; a residue is 100 degrees and 1.5 angstrom from the one before.
HELIX = {"N": (1.55, -28, -0.9), "CA": (2.29, 0, 0), "C": (1.66, 26, 1.1), "CB": (3.3, -22, -1.0)}
NAMES = ["ALA", "GLY", "SER", "LEU", "MET", "GLU", "LYS", "TRP", "VAL", "ILE", "ASP", "THR"]
SEQUENCE = "AGSLMEKWVIDT"


def atom(name, residue, chain, number, place, code=" ", alternate=" ", occupancy=1.0, record="ATOM", element=None):
    x, y, z = place
    return (
        f"{record:<6}    1 {name:^4}{alternate}{residue:>3} {chain}{number:>4}{code}   {x:8.3f}{y:8.3f}{z:8.3f}"
        f"{occupancy:6.2f}  20.00          {element or name[0]:>2}"
    )


def place(k, name, at=(0.0, 0.0)):
    radius, turn, rise = HELIX[name]
    angle = math.radians(turn + 100 * k)
    return at[0] + radius * math.cos(angle), at[1] + radius * math.sin(angle), rise + 1.5 * k


def residue(k, name, chain="A", number=None, at=(0.0, 0.0), **how):
    number = k + 1 if number is None else number
    atoms = [a for a in HELIX if a != "CB" or name != "GLY"]
    return [atom(a, name, chain, number, place(k, a, at), **how) for a in atoms]


def helix(names=NAMES, **how):
    return [line for k, name in enumerate(names) for line in residue(k, name, **how)]


def seqres(names, chain="A"):
    rows = [names[start : start + 13] for start in range(0, len(names), 13)]
    return [f"SEQRES {k:>3} {chain} {len(names):>4}  {' '.join(row)}" for k, row in enumerate(rows, 1)]


def without(lines, *numbers):
    return [line for line in lines if line[22:26].strip() not in map(str, numbers)]


def part(names, start=0, number=1, chain="A", at=(0.0, 0.0), segment="    "):
    lines = [
        line for k, name in enumerate(names) for line in residue(k + start, name, chain=chain, number=number + k, at=at)
    ]
    return [f"{line[:72]}{segment}{line[76:]}" for line in lines]


def sequences(tmp_path, lines, name="made.pdb"):
    """Of what stands in such a file, and in it packed, with other line ends, and behind a byte order mark."""
    text = "\n".join([*lines, *(["END"] if name.endswith("pdb") else []), ""])
    found = []
    for number, content in enumerate(
        (
            text.encode(),
            gzip.compress(text.encode(), mtime=0),
            text.replace("\n", "\r\n").encode(),
            text.encode("utf-8-sig"),
        )
    ):
        (tmp_path / f"{number}{name}").write_bytes(content)
        found.append([(chain.name, chain.sequence) for chain in read_structure(tmp_path / f"{number}{name}")])
    assert found[1:] == found[:-1]
    return found[0]
