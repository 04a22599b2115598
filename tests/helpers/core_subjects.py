"""Our attentions and encoders, as subjects of the conformance kit."""

from dataclasses import replace
from functools import partial

import torch

from core import Attention, Encoder, EncoderConfig, Tokens, adapters, attend, attention_backend
from core.adapters import Bottleneck, LoRA
from core.encoder.pack import pack, unpack
from core.sparse import Causal, Global, Local, PowersOfTwo
from core.testing import ENCODER, AttentionSubject, EncoderSubject

GRAPH = {"compile", "export"}

# --- Attention: every backend ----------------------------------------------------------------------------------------


def backend(name, *, fixed=None, grid=None, prefix=0):
    """`attend` on one backend; fixed: the pattern that it always uses."""

    def attention(q, k, v, *, mask=None, bias=None, dropout=0.0, scale=None, pattern=fixed):
        with attention_backend(name):
            place = {"pattern": pattern, "prefix": prefix, "grid": grid}
            return attend(q, k, v, mask=mask, bias=bias, dropout=dropout, scale=scale, **place)

    return attention


DENSE_CLAIMS = {
    "mask",
    "pairs",
    "bias",
    "dropout",
    "scale",
    "pattern",
    "double",
    "half",
    "cross",
    "equivariant",
    "empty",
}
WINDOWED_CLAIMS = {"mask", "dropout", "scale", "double", "half"}  # with a fixed pattern


def sparse(name, backend_name, pattern, claims=frozenset(), **options):
    shape = {"length": 160, "heads": 2, "allowed": pattern.dense}
    return AttentionSubject(
        backend(backend_name, fixed=pattern), name=name, claims=WINDOWED_CLAIMS | claims, **shape | options
    )


LENGTHS = (512, 1024, 2048, 4096)
ATTENTIONS = [
    AttentionSubject(attend, name="attend"),
    AttentionSubject(backend("dense"), name="attend dense", claims=DENSE_CLAIMS | {"cost"}),
    AttentionSubject(backend("native"), name="attend native", claims=DENSE_CLAIMS - {"empty"}),
    AttentionSubject(
        backend("reference"),
        name="attend reference",
        claims=DENSE_CLAIMS - {"dropout"} | {"cost"},
        cost_lengths=(64, 128, 256),
    ),
    AttentionSubject(
        partial(attend, pattern=Local(64)),
        name="attend Local",
        length=160,
        heads=2,
        allowed=Local(64).dense,
        claims=WINDOWED_CLAIMS | {"bias", "pairs", "cross", "empty"},
    ),
    sparse("native Local", "native", Local(64)),
    sparse("native causal", "native", Local(64) & Causal(), {"causal"}),
    sparse("native PowersOfTwo, Global", "native", PowersOfTwo() | Global(2), length=200),
    sparse(
        "blockwise Local", "blockwise", Local(64), {"bias", "cost", "cross", *GRAPH}, cost=1.0, cost_lengths=LENGTHS
    ),
    sparse("blockwise causal", "blockwise", Local(64) & Causal(), {"bias", "causal"}),
    sparse(
        "blockwise PowersOfTwo",
        "blockwise",
        PowersOfTwo(),
        {"bias", "cost"},
        cost=1.3,
        cost_lengths=LENGTHS,
    ),
    sparse("dense Local", "dense", Local(64), {"bias", "pairs"}),
]

# --- Encoders --------------------------------------------------------------------------------------------------------

TINY = EncoderConfig(dim=16, depth=2, heads=2, mlp_dim=32)
POST = replace(TINY, norm_order="post", final_norm=False)
ENCODER_CLAIMS = ENCODER - GRAPH | {"zeros", "sparsify"}


def with_reference_backend(module, x, mask=None):
    with attention_backend("reference"):
        return on_grid(module, x, mask) if module.config.rotary == "2d" else module(Tokens(x, mask)).x


def on_grid(module, x, mask=None):
    columns = 4 if x.shape[1] % 4 == 0 else 1
    return module(Tokens(x, mask, grid=(x.shape[1] // columns, columns))).x


def in_a_row(module, xs):
    """Sequences of different lengths, packed."""
    on_grid = module.config.rotary == "2d"

    def grid(n):
        columns = 4 if n % 4 == 0 else 1
        return (n // columns, columns) if on_grid else None

    out = module(pack([Tokens(x[None], grid=grid(len(x))) for x in xs]))
    return [tokens.x[0] for tokens in unpack(out)]


def encoder(name, config, claims=frozenset(), **options):
    call = on_grid if config.rotary == "2d" else None
    checkpointed = partial(Encoder, replace(config, checkpointing=True))
    defaults = {"call": call, "reference": with_reference_backend, "checkpointed": checkpointed}
    defaults |= {"adapt": lora, "merge": merged, "quantise": in_bf16}
    defaults["packed"] = in_a_row
    left = set() if config.patterns else {"left"}  # whose blocks are counted from the first place
    claims = ENCODER_CLAIMS | claims | left
    return EncoderSubject(partial(Encoder, config), name=name, claims=claims, **defaults | options)


def lora(module):
    return adapters.add(module, LoRA(rank=2, roles=("q", "v", "mlp_in")))


def merged(module):
    adapters.merge(module)
    return module


def in_bf16(module):
    return module.bfloat16()


def trainable_weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


SPARSE_COST = {"length": 136, "cost": 1.2, "cost_lengths": (256, 512, 1024, 2048)}
ENCODERS = [
    encoder("pre-norm", TINY, {"equivariant"} | GRAPH),
    encoder("post-norm", POST, {"equivariant"}, adapt=lambda m: adapters.add(m, Bottleneck(width=4)), merge=None),
    encoder(
        "rotary",
        replace(TINY, rotary="1d", rotary_theta=(100.0, 10_000.0)),
        adapt=lambda m: adapters.add(m, LoRA(rank=2, dora=True)),
    ),
    encoder("rotary on a grid", replace(TINY, rotary="2d")),
    encoder(
        "swiglu, RMSNorm", replace(TINY, activation=("swiglu", "geglu"), norm="rmsnorm", qkv_bias=False, mlp_bias=False)
    ),
    encoder(
        "qk norm, layer scale",
        replace(TINY, qk_norm=True, layer_scale=0.5, input_norm=True, final_norm=False),
        {"equivariant"},
    ),
    encoder(
        "wide heads, quick_gelu",
        replace(
            TINY, head_dim=12, mlp_dim=(24, 40), activation=("quick_gelu", "relu"), norm_bias=False, out_bias=False
        ),
    ),
    encoder("grouped heads, biases by distance", replace(TINY, heads=4, kv_heads=2, distance_bias=(8, 9)), GRAPH),
    encoder("disentangled", replace(TINY, norm_order="post", disentangled=(8, 9)), GRAPH),
    encoder(
        "shared layers",
        replace(TINY, shared_groups=1),
        weights=trainable_weights(Encoder(replace(TINY, depth=1))),
        merge=None,  # layers that share weights share no adapter
    ),
    encoder("dropout", replace(TINY, dropout=0.1, attention_dropout=0.1, drop_path=0.2), {"dropout"}),
    encoder("sparse", replace(TINY, patterns=(Local(64), PowersOfTwo() | Global(1))), **SPARSE_COST | {"cost": 2.0}),
    encoder("sparse causal", replace(TINY, patterns=Local(64) & Causal(), rotary="1d"), {"causal"}, **SPARSE_COST),
    EncoderSubject(
        partial(Attention, 16, 2, qk_norm=torch.nn.LayerNorm, dropout=0.3),
        name="Attention",
        call=lambda module, x, mask=None: module(x, mask=mask),
        claims=ENCODER - GRAPH | {"equivariant", "left", "dropout"},
        expected_failures={
            "masked-never-leaks": "its projections see the padding, which Encoder sets to 0 before",
        },
    ),
]
