"""Which architectures of timm `from_timm` loads: `python -m vision.architectures` writes docs/timm.md anew."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import timm

from core import UserError

from .meta import meta_model
from .resizing import changed
from .timm_models import timm_config

OUT = Path(__file__).parent.parent / "docs" / "timm.md"
FILES = ("vision_transformer", "eva", "beit", "naflexvit")
"""timm's files with ViTs that a checkpoint can be converted from."""
HEAD = """# ViTs of timm

What `vision.from_timm` says to each ViT of timm {version} before it downloads anything: {loaded} load, {resized} of
them at another image size only, and {refused} are refused. The tests compare outputs with timm's for a small model of
each kind.
`python -m vision.architectures` writes this page, and a test holds it to the code.
"""


def architectures() -> Mapping[str, str]:
    """Of each architecture why it is refused: "" if it loads; where another image size helps, the sentence says so."""
    found = {}
    for name in [name for file in FILES for name in timm.list_models(module=file)]:
        try:
            changed(timm_config(meta_model(name)), {})
            found[name] = ""
        except UserError as error:
            found[name] = str(error)
    return found


def page(found: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in found.items():
        by_reason[reason].append(f"`{name}`")
    loaded = by_reason.pop("", [])
    resized = {reason: names for reason, names in by_reason.items() if "(set the image size" in reason}
    refused = {reason: names for reason, names in by_reason.items() if reason not in resized}
    other = sum(map(len, resized.values()))
    lines = [
        HEAD.format(
            version=timm.__version__,
            loaded=len(loaded) + other,
            resized=other,
            refused=sum(map(len, refused.values())),
        ),
        "## Refused\n",
        "| why | architectures |",
        "|---|---|",
        *(f"| {reason} | {', '.join(names)} |" for reason, names in sorted(refused.items())),
        "\n## Loaded at another image size\n",
        "| why | architectures |",
        "|---|---|",
        *(f"| {reason} | {', '.join(names)} |" for reason, names in sorted(resized.items())),
        "\n## Loaded\n",
        *(f"- {name}" for name in loaded),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    OUT.write_text(page(architectures()))
