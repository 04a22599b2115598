"""The kit finds what is wrong, and says what; in what is right it finds nothing."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.testing import ATTENTION, CHECKS, ENCODER, MODEL, AttentionSubject, EncoderSubject, ModelSubject, check

spec = importlib.util.spec_from_file_location("mutants", Path(__file__).with_name("mutants.py"))
mutants = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)

GRAPHS = {"compile", "export"}  # the checkers of shapes are Python that no graph can hold
CLAIMS = {"mask", "pairs", "bias", "dropout", "scale", "pattern"} | ATTENTION - GRAPHS
ENCODES = ENCODER - GRAPHS | {"zeros", "equivariant"}


def attention(function, **options):
    return AttentionSubject(function, **{"name": "attention", "claims": CLAIMS} | options)


def encoder(factory=mutants.Stack, layer=None, **options):
    factory = factory if layer is None else partial(factory, layer)
    return EncoderSubject(factory, **{"name": "encoder", "claims": ENCODES} | options)


def model(factory, **options):
    ids = torch.randint(1, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    given = {
        "padded": (F.pad(ids, (0, 4), value=3), F.pad(mask, (0, 4))),
        "altered": (ids.where(mask, (ids + 7) % 20), mask),
        "claims": MODEL - GRAPHS,
        "name": "model",
    }
    return ModelSubject(factory, (ids, mask), **given | options)


causal = partial(attention, claims={"causal", "double", "half", "empty"})
near = partial(attention, claims={"double", "cost"}, allowed=mutants.window(3))
layer_size = sum(p.numel() for p in mutants.Layer().parameters())
words_size = sum(p.numel() for p in mutants.Tied().parameters())
RIGHT = {
    "attention": attention(mutants.right),
    "causal attention": causal(mutants.right_causal),
    "window": near(mutants.windowed),
    "compiled": attention(mutants.plain, claims={"mask", "compile", "export", "double"}),
    "encoder": encoder(),
    "causal encoder": encoder(layer=mutants.CausalLayer, claims=ENCODES - {"equivariant"} | {"causal"}),
    "dropping encoder": encoder(mutants.dropping, claims=ENCODES | {"dropout"}),
    "shared encoder": encoder(mutants.Shared, weights=layer_size),
    "adapted encoder": encoder(adapt=mutants.adapt),
    "model": model(mutants.Words),
    "tied model": model(mutants.Tied, weights=words_size),
}
# What plain softmax does with rows that have no key, and with NaN.
PLAIN = {"compiled": {"masked-rows-are-zero", "masked-never-leaks"}}

WRONG = {
    "shapes-and-dtypes": {
        "writes_into_queries": attention(mutants.writes_into_queries),
        "always_fp32": attention(mutants.always_fp32),
        "FirstSampleOnly": model(mutants.FirstSampleOnly),
        "WrittenOver": encoder(mutants.WrittenOver),
    },
    "agrees-with-reference": {
        "wrong_scale": attention(mutants.wrong_scale),
        "softmax_over_queries": attention(mutants.softmax_over_queries),
        "missing_head": attention(mutants.missing_head),
        "window off by one": near(partial(mutants.windowed, radius=4)),
        "encoder unlike its reference": encoder(reference=lambda module, x, mask: module(x, mask) + 1e-6),
    },
    "mask-agrees-with-reference": {"inverted_mask": attention(mutants.inverted_mask)},
    "pair-mask-agrees-with-reference": {"one_mask_for_all_heads": attention(mutants.one_mask_for_all_heads)},
    "bias-agrees-with-reference": {"ignored_bias": attention(mutants.ignored_bias)},
    "scale-agrees-with-reference": {"ignored_scale": attention(mutants.ignored_scale)},
    "pattern-that-keeps-all-is-none": {"pattern_loses_last_key": attention(mutants.pattern_loses_last_key)},
    "gradients-agree-with-reference": {"detached_keys": attention(mutants.detached_keys)},
    "gradcheck": {
        "gradient_off_by_a_percent": attention(mutants.gradient_off_by_a_percent),
        "HalfAGradient": encoder(layer=mutants.HalfAGradient),
    },
    "masked-rows-are-zero": {"nan_on_empty_row": attention(mutants.nan_on_empty_row)},
    "masked-never-leaks": {
        "nan_leaks": attention(mutants.nan_leaks),
        "NaNReachesGradients": encoder(mutants.NaNReachesGradients),
        "PaddingIsRead": model(mutants.PaddingIsRead),
    },
    "padding-changes-nothing": {
        "padding_in_the_sum": attention(mutants.padding_in_the_sum),
        "NormAcrossTokens": encoder(layer=mutants.NormAcrossTokens),
        "IgnoresMask": encoder(layer=mutants.IgnoresMask),
        "PaddingInTheMean": model(mutants.PaddingInTheMean),
    },
    "batch-changes-nothing": {
        "batch_leak": attention(mutants.batch_leak),
        "head_leak": attention(mutants.head_leak),
        "CentredOnBatch": encoder(layer=mutants.CentredOnBatch),
        "SortsTheBatch": model(mutants.SortsTheBatch),
    },
    "order-changes-nothing": {
        "position_dependence": attention(mutants.position_dependence),
        "KnowsItsPlace": encoder(layer=mutants.KnowsItsPlace),
    },
    "future-changes-nothing": {
        "leak_of_one": causal(mutants.leak_of_one),
        "leak_at_one_position": causal(mutants.leak_at_one_position),
        "CausalLeak": encoder(layer=mutants.CausalLeak, claims={"causal"}),
    },
    "half-precision-error": {
        "softmax_in_half": attention(mutants.softmax_in_half),
        "CoarseInHalf": encoder(layer=mutants.CoarseInHalf),
    },
    "large-logits-are-stable": {"no_maximum_taken_off": attention(mutants.no_maximum_taken_off)},
    "large-inputs-are-stable": {"Exponential": encoder(layer=mutants.Exponential)},
    "length-one": {"squeezed": attention(mutants.squeezed), "SqueezesOne": encoder(mutants.SqueezesOne)},
    "length-zero": {
        "highest_of_none": attention(mutants.highest_of_none),
        "DividesByLength": encoder(mutants.DividesByLength),
    },
    "empty-batch": {"NeedsASample": encoder(mutants.NeedsASample)},
    "strides-change-nothing": {
        "contiguous_only": attention(mutants.contiguous_only),
        "ContiguousOnly": encoder(mutants.ContiguousOnly),
    },
    "deterministic": {"noisy": attention(mutants.noisy), "NoisyInTraining": encoder(mutants.NoisyInTraining)},
    "dropout-of-zero-is-none": {"dropout_at_zero": attention(mutants.dropout_at_zero)},
    "dropout-is-unbiased": {
        "dropout_without_rescaling": attention(mutants.dropout_without_rescaling),
        "same_dropout_for_all": attention(mutants.same_dropout_for_all),
    },
    "dropout-is-off-in-evaluation": {
        "DropsInEvaluation": encoder(layer=mutants.DropsInEvaluation),
        "CountsItsCalls": encoder(mutants.CountsItsCalls),
    },
    "dropout-is-on-in-training": {"NeverDrops": encoder(layer=mutants.NeverDrops, claims=ENCODES | {"dropout"})},
    "gradient-reaches-every-parameter": {"DetachedWeight": encoder(layer=mutants.DetachedWeight)},
    "state-dict-round-trip": {"TableOutsideState": encoder(mutants.TableOutsideState)},
    "checkpointing-changes-nothing": {
        "RecomputedWithoutResidual": encoder(checkpointed=mutants.RecomputedWithoutResidual)
    },
    "compiles": {"other_when_compiled": attention(mutants.other_when_compiled, claims={"mask", "compile"})},
    "exports": {"depends_on_numbers": attention(mutants.depends_on_numbers, claims={"export"})},
    "cost-grows-as-claimed": {
        "a window as a mask": near(mutants.windowed, cost=1.0),
        "quadratic encoder": encoder(cost=1.0),
    },
    "overfits-one-batch": {"Bounded": model(mutants.Bounded)},
    "shared-parameters-are-shared": {
        "SharedIsCopied": encoder(mutants.SharedIsCopied, weights=layer_size),
        "TiedByCopy": model(mutants.TiedByCopy, weights=words_size),
    },
    "adapters-start-as-identity": {
        "not the identity": encoder(adapt=partial(mutants.adapt, up=0.01)),
        "without a gradient": encoder(adapt=mutants.adapt_without_gradient),
    },
    "padding-comes-out-as-zero": {"PaddingIsKept": encoder(mutants.PaddingIsKept)},
    "fully-masked-sample-is-harmless": {"NaNOnEmptyRow": encoder(layer=mutants.NaNOnEmptyRow)},
}
CASES = [(name, expected) for expected, subjects in WRONG.items() for name in subjects]


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes_every_check(name):
    wrong = {result.check: result.message for result in check(RIGHT[name]).failed}
    assert wrong.keys() == PLAIN.get(name, set()), wrong


@pytest.mark.parametrize("name, expected", CASES)
def test_each_mutant_is_caught_by_the_check_for_it(name, expected):
    [result] = check(WRONG[expected][name], {expected}).results
    assert result.status == "failed", result
    assert result.message and "\n" not in result.message and "TypeCheckError" not in result.message


def test_every_check_has_a_mutant():
    assert set(WRONG) == {each.id for checks in CHECKS.values() for each in checks}
