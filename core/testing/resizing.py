"""The checks of learned positions that are resized to a grid of another size."""

import torch
from jaxtyping import Float
from torch import Tensor

from .measures import Figures, close, difference, normal, require
from .module_subjects import ModelSubject, Positions
from .written import Written

MORE = (1, 2)  # rows and columns
# How a table t "rows columns d" is changed, first and then, and how patches p "b c rows h columns w" are moved with it.
BY_ROW, BY_COLUMN = (f"t.mean({axis}, keepdim=True).expand_as(t)" for axis in (1, 0))
CASES = {
    "that differ by row alone, patches moved along their row": (BY_ROW, BY_ROW, "p.roll(1, 4)"),
    "that differ by column alone, patches moved along their column": (BY_COLUMN, BY_COLUMN, "p.roll(1, 2)"),
    "mirrored with the patches, left to right": ("t", "t.flip(1)", "p.flip(4)"),
    "mirrored with the patches, top to bottom": ("t", "t.flip(0)", "p.flip(2)"),
}
LOST = "its positions have no influence once they are resized"


def resized_to_its_size_changes_nothing(subject: ModelSubject) -> Figures:
    """Positions that are resized to the size that they have are as before."""
    positions, inputs = _given(subject), subject.inputs()
    expected = subject.run(subject.make(), *inputs)
    out = subject.run(positions.resize(subject.make(), *positions.grid).eval(), *inputs)
    return close(out, expected, subject.tolerance, "output, resized to its own size")


def resized_positions_keep_their_places(subject: ModelSubject) -> Figures:
    """Resized to another grid, positions stay where they are in the image: if they differ by row alone, they do so
    still; if they are mirrored, they are mirrored still."""
    to, pixels = larger(subject)
    figures: Figures = {"error": 0.0}
    for what, (first, then, moved) in CASES.items():
        patches = pixels.unflatten(3, (to[1], -1)).unflatten(2, (to[0], -1))
        moved_pixels = Written(f"def moved(p): return {moved}")(patches).flatten(4).flatten(2, 3)
        expected, out = _resized(subject, first, pixels), _resized(subject, then, moved_pixels)
        found = close(out, expected, subject.tolerance, f"output at {to[0]} x {to[1]} patches, positions {what}")
        figures = max(figures, found, key=lambda f: f["error"])
    require(difference(_resized(subject, "t", pixels), _resized(subject, "-t", pixels)) > 1e-6, LOST)
    return figures


def larger(subject: ModelSubject) -> tuple[tuple[int, int], Float[Tensor, "1 c h w"]]:
    """Rows and columns of a larger grid, and an image of that size."""
    grid, image = _given(subject).grid, subject.inputs()[0]
    to = grid[0] + MORE[0], grid[1] + MORE[1]
    height, width = (side // before * after for side, before, after in zip(image.shape[2:], grid, to, strict=True))
    return to, normal(1, image.shape[1], height, width, seed=5, dtype=subject.dtype)


def _resized(subject: ModelSubject, change: str, pixels: Tensor) -> Tensor:
    """The output, the mean over tokens if there is one for each, of a module with other positions, resized."""
    positions, module = _given(subject), subject.make()
    rows, columns = positions.grid
    for name in positions.tables:
        table = module.get_parameter(name).data
        values = Written(f"def changed(t): return {change}")(normal(rows, columns, table.shape[-1], seed=6))
        table.view(-1, table.shape[-1])[-rows * columns :] = values.flatten(0, 1)
    to = larger(subject)[0]
    with torch.no_grad():
        out = subject.run(positions.resize(module, *to).eval(), pixels)
    return out.mean(1) if out.ndim == 3 else out


def _given(subject: ModelSubject) -> Positions:
    assert subject.positions is not None  # which the claim follows from
    return subject.positions
