"""Subjects of the kit: correct ones, and mutants with one fault each, by the check that must find it."""

from functools import partial

import attention_mutants as attentions
import module_mutants as modules
import padding_mutants as padded
import row_mutants as rows
import stored_mutants as stored
import torch
import torch.nn.functional as F

from core.testing import ATTENTION, ENCODER, MODEL, AttentionSubject, EncoderSubject, ModelSubject, Positions

GRAPHS = {"compile", "export"}  # the checkers of shapes are Python that no graph can hold
CLAIMS = {"mask", "pairs", "bias", "dropout", "scale", "pattern"} | ATTENTION - GRAPHS
ENCODES = ENCODER - GRAPHS | {"zeros", "equivariant", "left"}


def attention(function, **options):
    return AttentionSubject(function, **{"name": "attention", "claims": CLAIMS} | options)


def encoder(factory=modules.Stack, layer=None, **options):
    factory = factory if layer is None else partial(factory, layer)
    return EncoderSubject(factory, **{"name": "encoder", "claims": ENCODES} | options)


def model(factory, **options):
    ids = torch.randint(1, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    defaults = {
        "padded": (F.pad(ids, (0, 4), value=3), F.pad(mask, (0, 4))),
        "left": [torch.stack([row.roll(-int(n)) for row, n in zip(t, mask.sum(1), strict=True)]) for t in (ids, mask)],
        "emptied": (ids, mask & torch.tensor([[False], [True], [True]])),
        "altered": (ids.where(mask, (ids + 7) % 20), mask),
        "claims": MODEL - GRAPHS,
        "ragged": [ids[0], ids[1, :5], ids[2, :1]],
        "name": "model",
    }
    return ModelSubject(factory, (ids, mask), **defaults | options)


def sound(factory, **options):
    lengths = torch.tensor([48, 40, 33])
    waves = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    real = torch.arange(48) < lengths[:, None]
    batches = {
        "padded": (F.pad(waves.where(real, 0), (0, 16)), lengths),
        "altered": (waves, lengths),
    }
    claims = MODEL - GRAPHS - {"empty"}
    return ModelSubject(factory, (waves.where(real, 0), lengths), name="sound", claims=claims, **batches | options)


def row(factory, **options):
    claims = {"double", "half", "large", "empty", "checkpointing"}
    return EncoderSubject(factory, name="row", claims=claims, packed=rows.in_a_row, **options)


def cached(factory):
    claims = {"double", "causal"}
    return EncoderSubject(factory, name="cached", call=stored.at_once, cached=stored.with_cache, claims=claims)


def pictures(factory):
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    positions = Positions(("positions",), (3, 3), stored.resize)
    return ModelSubject(factory, (images,), name="pictures", positions=positions, claims=MODEL - GRAPHS)


# Takes masks, and no other options.
masked = partial(attention, claims=ATTENTION - GRAPHS | {"mask", "pairs"})
causal = partial(attention, claims={"causal", "double", "half", "empty"})
near = partial(attention, claims={"double", "cost"}, allowed=attentions.window(3))
layer_size = sum(p.numel() for p in modules.Layer().parameters())
tied_size = sum(p.numel() for p in modules.Tied().parameters())
CORRECT = {
    "attention": attention(attentions.right),
    "causal attention": causal(attentions.right_causal),
    "window": near(attentions.windowed),
    "compiled": attention(attentions.plain, claims={"mask", "compile", "export", "double"}),
    "encoder": encoder(),
    "causal encoder": encoder(layer=modules.CausalLayer, claims=ENCODES - {"equivariant"} | {"causal"}),
    "dropping encoder": encoder(modules.dropping, claims=ENCODES | {"dropout"}),
    "shared encoder": encoder(modules.Shared, weights=layer_size),
    "adapted encoder": encoder(adapt=modules.adapt),
    "packed encoder": row(rows.Row),
    "other ways": encoder(padded.WithWeights, ways={"with weights": padded.with_weights}),
    "merged encoder": encoder(adapt=modules.adapt, merge=padded.merge),
    "quantised encoder": encoder(adapt=stored.adapt_quantised, merge=stored.merge_in_full, quantise=stored.quantise),
    "encoder in bf16": encoder(adapt=stored.adapt_in_fp32, quantise=stored.in_bf16),
    "cached encoder": cached(stored.Remembers),
    **{
        each.__name__: pictures(each)
        for each in (stored.Pictures, stored.BilinearPictures, stored.AntialiasedPictures, stored.NearestPictures)
    },
    "unnormed encoder": encoder(layer=padded.Unnormed),
    "model": model(modules.TextModel),
    "model with positions": model(padded.WithPositions, ragged=None),
    "sound model": sound(padded.SoundModel),
    "tied model": model(modules.Tied, weights=tied_size),
}
# Plain softmax gives NaN for rows without keys, and lets NaN leak.
KNOWN_FAILURES = {"compiled": {"masked-rows-are-zero", "masked-never-leaks"}}

MUTANTS = {
    "shapes-and-dtypes": {
        "writes_into_queries": attention(attentions.writes_into_queries),
        "always_fp32": attention(attentions.always_fp32),
        "FirstSampleOnly": model(modules.FirstSampleOnly, ragged=None),
        "WrittenOver": encoder(modules.WrittenOver),
    },
    "agrees-with-reference": {
        "wrong_scale": attention(attentions.wrong_scale),
        "softmax_over_queries": masked(attentions.softmax_over_queries),
        "missing_head": attention(attentions.missing_head),
        "window off by one": near(partial(attentions.windowed, radius=4)),
        "encoder unlike its reference": encoder(reference=lambda module, x, mask: module(x, mask) + 1e-6),
    },
    "many-tokens-agree-with-reference": {
        each.__name__: attention(each)
        for each in (
            attentions.first_keys_alone,
            attentions.mask_of_the_first_keys,
            attentions.bias_of_the_first_queries,
            attentions.gradients_of_the_first_keys,
        )
    },
    "mask-agrees-with-reference": {"inverted_mask": attention(attentions.inverted_mask)},
    "mask-holds-at-large-logits": {"mask_of_ten_thousand": masked(attentions.mask_of_ten_thousand)},
    "mask-holds-in-half-precision": {
        "MaskOfTenThousand": encoder(padded.MaskOfTenThousand, claims=ENCODES - {"zeros"}),
        "NaNOnEmptyRowInHalf": encoder(padded.NaNOnEmptyRowInHalf, claims=ENCODES - {"zeros"}),
    },
    "left-padding-changes-nothing": {
        "PaddingIsBehind": encoder(padded.PaddingIsBehind),
        "PositionsIgnorePadding": model(padded.PositionsIgnorePadding, ragged=None),
        "LastOfTheRow": model(padded.LastOfTheRow, ragged=None),
    },
    "padding-changes-nothing-in-training": {
        "NormOverTheBatch": encoder(layer=padded.NormOverTheBatch),
        "StatisticsOfPadding": sound(padded.StatisticsOfPadding),
    },
    "no-grad-changes-nothing": {"FastPathWithoutMask": encoder(layer=padded.FastPathWithoutMask)},
    "other-ways-agree": {
        name: encoder(getattr(padded, name), ways={"with weights": padded.with_weights})
        for name in ("ForgetsTheMask", "WeightsWithoutGradient")
    },
    "inference-ways-agree": {
        name: encoder(getattr(padded, name), inference_ways={"with weights": padded.with_weights})
        for name in ("ForgetsTheMask", "WeightsOfAnotherScale")
    },
    "cached-equals-at-once": {
        each.__name__: cached(each)
        for each in (
            stored.PositionsBeginAgain,
            stored.MaskOfTheFirstKeys,
            stored.ForgetsTheOldest,
            stored.KeepsTheCache,
        )
    },
    "resized-to-its-size-changes-nothing": {
        each.__name__: pictures(each) for each in (stored.SmoothsAtItsSize, stored.RoundsWhenResized)
    },
    "resized-positions-keep-their-places": {
        each.__name__: pictures(each)
        for each in (
            stored.ColumnsForRows,
            stored.ResizesTheRowOfAll,
            stored.SamplesOffCentre,
            stored.ForgetsItsPositions,
        )
    },
    "adapters-learn-beside-quantised-weights": {
        "in bf16": encoder(adapt=modules.adapt, quantise=stored.in_bf16),
        "quantised, without a gradient": encoder(adapt=modules.adapt_without_gradient, quantise=stored.in_bf16),
    },
    "merged-into-quantised-weights-is-kept": {
        "cut off": encoder(adapt=stored.adapt_quantised, merge=stored.merge_and_round, quantise=stored.cut_off),
        "four bits": encoder(adapt=stored.adapt_quantised, merge=stored.merge_and_round, quantise=stored.in_four_bits),
    },
    "fp32-agrees-with-fp64": {"HalfUnasked": encoder(layer=padded.HalfUnasked)},
    "autocast-takes-half-inputs": {"Fp32Inside": encoder(layer=padded.Fp32Inside)},
    "merged-equals-unmerged": {
        "merged twice": encoder(adapt=modules.adapt, merge=padded.merge_and_keep),
        "merged in the first layer": encoder(adapt=modules.adapt, merge=padded.merge_the_first),
    },
    "pair-mask-agrees-with-reference": {
        "one_mask_for_all_heads": attention(attentions.one_mask_for_all_heads),
    },
    "bias-agrees-with-reference": {
        "ignored_bias": attention(attentions.ignored_bias),
        "bias_of_keys_for_the_first_query": attention(attentions.bias_of_keys_for_the_first_query),
        "bias_of_samples_does_not_learn": attention(attentions.bias_of_samples_does_not_learn),
    },
    "scale-agrees-with-reference": {
        "ignored_scale": attention(attentions.ignored_scale),
        "scale_has_no_gradient": attention(attentions.scale_has_no_gradient),
    },
    "is-causal-agrees-with-reference": {
        "is_causal_leaks": attention(attentions.is_causal_leaks, claims={"is_causal", "mask"}),
        "is_causal_learns_from_all": attention(attentions.is_causal_learns_from_all, claims={"is_causal", "mask"}),
    },
    "pattern-that-keeps-all-is-none": {
        "pattern_loses_last_key": attention(attentions.pattern_loses_last_key, claims={"mask", "pattern", "double"})
    },
    "gradients-agree-with-reference": {"detached_keys": attention(attentions.detached_keys)},
    "gradcheck": {
        "gradient_off_by_a_percent": attention(attentions.gradient_off_by_a_percent),
        "HalfAGradient": encoder(layer=modules.HalfAGradient),
        "ThreeTimesTheGradient": encoder(modules.ThreeTimesTheGradient),
        "DetachedBranch": encoder(layer=modules.DetachedBranch),
    },
    "masked-rows-are-zero": {
        "nan_on_empty_row": masked(attentions.nan_on_empty_row),
        "ignored_mask_of_queries": attention(attentions.ignored_mask_of_queries),
        "nan_on_row_of_infinite_bias": attention(
            attentions.nan_on_row_of_infinite_bias, claims={"mask", "bias", "double"}
        ),
    },
    "masked-never-leaks": {
        "nan_leaks": masked(attentions.nan_leaks),
        "nan_leaks_through_pairs": masked(attentions.nan_leaks_through_pairs),
        "NaNReachesGradients": encoder(modules.NaNReachesGradients),
        "PaddingIsRead": model(modules.PaddingIsRead, ragged=None),
        "FramesRoundedUp": sound(padded.FramesRoundedUp),
        "NormOverPadding": sound(padded.NormOverPadding),
    },
    "padding-changes-nothing": {
        "padding_in_the_sum": masked(attentions.padding_in_the_sum),
        "NormAcrossTokens": encoder(layer=modules.NormAcrossTokens),
        "IgnoresMask": encoder(layer=modules.IgnoresMask),
        "PaddingInTheMean": model(modules.PaddingInTheMean),
        "NormOverPadding": sound(padded.NormOverPadding),
        "ConvolvesAcrossTheEnd": sound(padded.ConvolvesAcrossTheEnd),
    },
    "batch-changes-nothing": {
        "batch_leak": attention(attentions.batch_leak),
        "head_leak": attention(attentions.head_leak),
        "CentredOnBatch": encoder(layer=modules.CentredOnBatch),
        "SortsTheBatch": model(modules.SortsTheBatch, ragged=None),
    },
    "order-changes-nothing": {
        "position_dependence": attention(attentions.position_dependence),
        "KnowsItsPlace": encoder(layer=modules.KnowsItsPlace),
    },
    "future-changes-nothing": {
        "leak_of_one": causal(attentions.leak_of_one),
        "leak_at_one_position": causal(attentions.leak_at_one_position),
        "CausalLeak": encoder(layer=modules.CausalLeak, claims={"causal"}),
    },
    "half-precision-error": {
        "softmax_in_half": attention(attentions.softmax_in_half, claims={"double", "half", "cross"}),
        "CoarseInHalf": encoder(layer=modules.CoarseInHalf),
    },
    "large-logits-are-stable": {"no_maximum_taken_off": masked(attentions.no_maximum_taken_off)},
    "large-inputs-are-stable": {"Exponential": encoder(layer=modules.Exponential)},
    "length-one": {"squeezed": attention(attentions.squeezed), "SqueezesOne": encoder(modules.SqueezesOne)},
    "length-zero": {
        "highest_of_none": attention(attentions.highest_of_none),
        "DividesByLength": encoder(modules.DividesByLength),
    },
    "empty-batch": {"NeedsASample": encoder(modules.NeedsASample)},
    "strides-change-nothing": {
        "contiguous_only": attention(attentions.contiguous_only),
        "ContiguousOnly": encoder(modules.ContiguousOnly),
    },
    "deterministic": {"noisy": attention(attentions.noisy), "NoisyInTraining": encoder(modules.NoisyInTraining)},
    "many-tokens-padding-changes-nothing": {
        "MaskOfTheFirstTokens": encoder(layer=padded.MaskOfTheFirstTokens),
    },
    "many-tokens-future-changes-nothing": {
        "CausalAmongTheFirst": encoder(layer=modules.CausalAmongTheFirst, claims={"causal", "double"}),
    },
    "dropout-of-zero-is-none": {"dropout_at_zero": attention(attentions.dropout_at_zero)},
    "dropout-is-unbiased": {
        "dropout_without_rescaling": attention(attentions.dropout_without_rescaling),
        "same_dropout_for_all": attention(attentions.same_dropout_for_all),
    },
    "dropout-is-of-single-weights": {
        each.__name__: attention(each)
        for each in (
            attentions.dropout_shared_by_heads,
            attentions.dropout_of_outputs,
            attentions.dropout_alike_in_every_call,
        )
    },
    "gradcheck-with-dropout": {"gradient_forgets_dropout": attention(attentions.gradient_forgets_dropout)},
    "dropout-is-off-in-evaluation": {
        "DropsInEvaluation": encoder(layer=modules.DropsInEvaluation),
        "CountsItsCalls": encoder(modules.CountsItsCalls),
    },
    "dropout-is-on-in-training": {"NeverDrops": encoder(layer=modules.NeverDrops, claims=ENCODES | {"dropout"})},
    "gradient-reaches-every-parameter": {
        "DetachedWeight": encoder(layer=modules.DetachedWeight),
        "DetachedInput": encoder(layer=modules.DetachedInput),
    },
    "state-dict-round-trip": {"TableOutsideState": encoder(modules.TableOutsideState)},
    "checkpointing-changes-nothing": {
        "RecomputedWithoutResidual": encoder(checkpointed=modules.RecomputedWithoutResidual),
        "RecomputedWithOtherDropout": encoder(padded.Dropping, checkpointed=padded.RecomputedWithOtherDropout),
    },
    "compiles": {"other_when_compiled": attention(attentions.other_when_compiled, claims={"mask", "compile"})},
    "exports": {"depends_on_numbers": attention(attentions.depends_on_numbers, claims={"export"})},
    "cost-grows-as-claimed": {
        "a window as a mask": near(attentions.windowed, cost=1.0),
        "quadratic encoder": encoder(cost=1.0),
    },
    "overfits-one-batch": {"Bounded": model(modules.Bounded, ragged=None)},
    "shared-parameters-are-shared": {
        "SharedIsCopied": encoder(modules.SharedIsCopied, weights=layer_size),
        "TiedByCopy": model(modules.TiedByCopy, weights=tied_size),
        "UntiedByLoading": model(padded.UntiedByLoading, weights=tied_size),
    },
    "adapters-start-as-identity": {
        "not the identity": encoder(adapt=partial(modules.adapt, up=0.01)),
        "without a gradient": encoder(adapt=modules.adapt_without_gradient),
    },
    "padding-comes-out-as-zero": {"PaddingIsKept": encoder(modules.PaddingIsKept)},
    "packed-equals-alone": {
        "OffsetByOne": row(rows.OffsetByOne),
        "PositionsRunOn": row(rows.PositionsRunOn),
        "OneFirstTokenForAll": row(rows.OneFirstTokenForAll),
        "MeanOverTheRow": row(rows.MeanOverTheRow),
        "PaddedToTheLongest": model(modules.PaddedToTheLongest),
    },
    "packed-gradients-equal-alone": {"DetachedSecond": row(rows.DetachedSecond)},
    "packed-order-changes-nothing": {
        "KnowsItsPlaceInTheRow": row(rows.KnowsItsPlaceInTheRow),
        "PositionsRunOn": row(rows.PositionsRunOn),
    },
    "packed-never-leaks": {
        "SeesTheNext": row(rows.SeesTheNext),
        "OffsetByOne": row(rows.OffsetByOne),
        "OneFirstTokenForAll": row(rows.OneFirstTokenForAll),
        "MeanOverTheRow": row(rows.MeanOverTheRow),
        "ReadsTheNextSample": model(modules.ReadsTheNextSample),
    },
    "packed-half-precision-error": {"CoarseRowInHalf": row(rows.CoarseRowInHalf)},
    "fully-masked-sample-is-harmless": {
        "NaNOnEmptyRow": encoder(layer=modules.NaNOnEmptyRow),
        "NaNOfNone": model(padded.NaNOfNone, ragged=None),
    },
}
