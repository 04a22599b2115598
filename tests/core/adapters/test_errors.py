"""What is no adapter of a model is refused in one sentence."""

import pytest
import torch
from adapted import make

from core import UserError, adapters, share
from core.adapters import Bottleneck, LoRA, Prompt


@pytest.mark.parametrize(
    "spec, words",
    [
        (lambda: LoRA(rank=0), "LoRA: rank must be at least 1, not 0"),
        (lambda: LoRA(rank=33), "rank must be from 1 to 32, the width of 'q', not 33"),
        (lambda: LoRA(roles=("query",)), "roles.* must be 'q', 'k', 'v', 'out', 'mlp_in' or 'mlp_out', not 'query'"),
        (lambda: LoRA(dropout=1.5), "dropout must be less than 1, not 1.5"),
        (lambda: LoRA(alpha=float("nan")), "alpha must be a finite number"),
        (lambda: Bottleneck(width=0), "width must be at least 1"),
        (lambda: Prompt(tokens=0), "tokens must be at least 1"),
    ],
)
def test_what_cannot_be_added(spec, words):
    model, _ = make()
    with pytest.raises(UserError, match=words):
        adapters.add(model, spec())
    assert adapters.names(model) == [] and all(p.requires_grad for p in model.parameters())


def test_mistakes_are_named(tmp_path):
    model, _ = make()
    adapters.add(model, LoRA(rank=2))
    for call, words in (
        (lambda: adapters.add(model, LoRA()), "an adapter 'default' already"),
        (lambda: adapters.add(model, LoRA(dora=True), "other"), "DoRA learns how large"),
        (lambda: adapters.add(model, LoRA(), "a.b"), "'a.b' can't be the name"),
        (lambda: adapters.add(model, LoRA(), "c", train=("classifier",)), "no parameters under 'classifier' to train"),
        (lambda: adapters.add(model, LoRA(), "train"), "'train' can't be the name"),
        (lambda: adapters.save(model, tmp_path / "none", "other"), "no adapter 'other'; there are: default"),
        (lambda: adapters.merge(model, "other"), "no adapter 'other'; there are: default"),
        (lambda: adapters.unmerge(model), "is not merged"),
        (lambda: share(model), "merge or remove the adapters first"),
        (lambda: adapters.load(model, tmp_path / "none"), "holds no adapter that can be read"),
        (lambda: adapters.add(torch.nn.Linear(2, 2), LoRA()), "Linear has nothing"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert not (tmp_path / "none").exists()
    adapters.merge(model)
    with pytest.raises(UserError, match="is merged already"):
        adapters.merge(model)
    adapters.add(model, Bottleneck(), "narrow")
    with pytest.raises(UserError, match="only a LoRA becomes part"):
        adapters.merge(model, "narrow")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_finite_number_is_refused(strength):
    model, _ = make("text")
    adapters.add(model, LoRA(rank=2))
    with pytest.raises(UserError, match="must be a finite number"):
        adapters.scale(model, "default", strength)


@pytest.mark.parametrize("spec", [LoRA(rank=2), Bottleneck(width=4), Prompt(tokens=2)], ids=lambda s: type(s).__name__)
def test_a_quantised_model_takes_no_adapter(spec):
    model, _ = make("text")
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with pytest.raises(UserError, match="is quantised: an adapter can only be put on a model before that"):
        adapters.add(model, spec)
