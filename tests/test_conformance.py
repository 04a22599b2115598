"""The conformance kit over every attention, encoder and model that is ours, of every modality, dense and sparse.

Run as a script (`python -P tests/test_conformance.py`), it prints the docs' table of what ran where. torch.compile and
torch.export are checked in a process of their own, where shapes are not checked: the checkers are Python that no graph
can hold.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jaxtyping
import torch
import torch.nn.functional as F

from audio import AST, ASTConfig
from core import Attention, Encoder, EncoderConfig, Tokens, adapters, attend, attention_backend
from core.adapters import Bottleneck, LoRA
from core.sparse import Causal, Global, Local, PowersOfTwo, Window2d
from core.testing import (
    CHECKS,
    ENCODER,
    MODEL,
    AttentionSubject,
    EncoderSubject,
    ModelSubject,
    Report,
    Result,
    check,
    parametrize_with_checks,
)
from examples.multimodal import ContrastiveModel, FusedModel, MultimodalConfig
from examples.protein.model import FoldConfig, FoldModel
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

GRAPHS = ("compiles", "exports")
GRAPH = {"compile", "export"}
REPEATS = {"overfits-one-batch", "half-precision-error", "cost-grows-as-claimed", "dropout-is-on-in-training"}
REPEATS |= {"shared-parameters-are-shared"}

# --- Attention: every backend ----------------------------------------------------------------------------------------


def backend(name, *, fixed=None, grid=None, prefix=0):
    """`attend` by one backend; fixed: a pattern that it always attends by."""

    def attention(q, k, v, *, mask=None, bias=None, dropout=0.0, scale=None, pattern=fixed):
        with attention_backend(name):
            how = {"pattern": pattern, "prefix": prefix, "grid": grid}
            return attend(q, k, v, mask=mask, bias=bias, dropout=dropout, scale=scale, **how)

    return attention


DENSE = {"mask", "pairs", "bias", "dropout", "scale", "pattern", "double", "half", "cross", "equivariant", "empty"}
KEPT = {"mask", "dropout", "scale", "double", "half"}  # of a fixed pattern


def sparse(name, by, pattern, claims=frozenset(), **options):
    shape = {"length": 160, "heads": 2, "allowed": pattern.dense}
    return AttentionSubject(backend(by, fixed=pattern), name=name, claims=KEPT | claims, **shape | options)


LENGTHS = (512, 1024, 2048, 4096)
ATTENTIONS = [
    AttentionSubject(attend, name="attend"),
    AttentionSubject(backend("dense"), name="attend dense", claims=DENSE | {"cost"}),
    AttentionSubject(
        backend("reference"),
        name="attend reference",
        claims=DENSE - {"dropout"} | {"cost"},
        cost_lengths=(64, 128, 256),
    ),
    AttentionSubject(
        partial(attend, pattern=Local(64)),
        name="attend Local",
        length=160,
        heads=2,
        allowed=Local(64).dense,
        claims=KEPT | {"bias", "pairs", "cross", "empty"},
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
ENCODES = ENCODER - GRAPH | {"zeros", "sparsify"}


def by_reference(module, x, mask=None):
    with attention_backend("reference"):
        return on_grid(module, x, mask) if module.config.rotary == "2d" else module(Tokens(x, mask)).x


def on_grid(module, x, mask=None):
    columns = 4 if x.shape[1] % 4 == 0 else 1
    return module(Tokens(x, mask, grid=(x.shape[1] // columns, columns))).x


def encoder(name, config, claims=frozenset(), **options):
    call = on_grid if config.rotary == "2d" else None
    checkpointed = partial(Encoder, replace(config, checkpointing=True))
    given = {"call": call, "reference": by_reference, "adapt": lora, "checkpointed": checkpointed} | options
    return EncoderSubject(partial(Encoder, config), name=name, claims=ENCODES | claims, **given)


def lora(module):
    return adapters.add(module, LoRA(rank=2, roles=("q", "v", "mlp_in")))


def learns(module):
    return sum(parameter.numel() for parameter in module.parameters())


SPARSE = {"length": 136, "cost": 1.2, "cost_lengths": (256, 512, 1024, 2048)}
ENCODERS = [
    encoder("pre-norm", TINY, {"equivariant"} | GRAPH),
    encoder("post-norm", POST, {"equivariant"}, adapt=lambda m: adapters.add(m, Bottleneck(width=4))),
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
    encoder("shared layers", replace(TINY, shared_groups=1), weights=learns(Encoder(replace(TINY, depth=1)))),
    encoder("dropout", replace(TINY, dropout=0.1, attention_dropout=0.1, drop_path=0.2), {"dropout"}),
    encoder("sparse", replace(TINY, patterns=(Local(64), PowersOfTwo() | Global(1))), **SPARSE | {"cost": 2.0}),
    encoder("sparse causal", replace(TINY, patterns=Local(64) & Causal(), rotary="1d"), {"causal"}, **SPARSE),
    EncoderSubject(
        partial(Attention, 16, 2, qk_norm=torch.nn.LayerNorm, dropout=0.3),
        name="Attention",
        call=lambda module, x, mask=None: module(x, mask=mask),
        claims=ENCODER - GRAPH | {"equivariant", "dropout"},
        expected_failures={
            "masked-never-leaks": "its projections see the padding, which Encoder sets to 0 before",
        },
    ),
]

# --- Models ----------------------------------------------------------------------------------------------------------


def fixed(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(length, real=(12, 7, 1), seed=0):
    """Word numbers, other ones behind the real ones for each seed."""
    mask = torch.arange(length) < torch.tensor(real)[:, None]
    real_ones, others = (torch.randint(1, 50, (3, 200), generator=torch.Generator().manual_seed(s)) for s in (0, seed))
    return real_ones[:, :length].where(mask, others[:, :length]), mask


def model(kind, name, config, batch, claims=frozenset(), **options):
    """A model by its config; with checkpointing, and a LoRA."""
    recomputing = replace(config, encoder=replace(config.encoder, checkpointing=True))
    given = {"checkpointed": partial(kind, recomputing), "adapt": lora} | options
    return ModelSubject(partial(kind, config), batch, name=name, claims=MODEL - GRAPH | {"sparsify"} | claims, **given)


VIEW = ViTConfig(image_size=16, patch_size=4, channels=1, classes=5, encoder=TINY)
IMAGES = (fixed(3, 1, 16, 16),)
LARGE = (fixed(2, 1, 40, 40),)


def picture(length):
    """Of `length` patches in rows of 16."""
    return (fixed(1, 1, length // 4, 64),)


SOUND = ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, classes=4, encoder=TINY)
NO_SOUND = {"empty-batch": "a batch of no clips has no longest clip"}
LENGTHS_OF_SOUND = torch.tensor([4_000, 2_500, 1_200])
WAVES = fixed(3, 4_000) * (torch.arange(4_000) < LENGTHS_OF_SOUND[:, None])
ALTERED = WAVES.where(torch.arange(4_000) < LENGTHS_OF_SOUND[:, None], torch.nan)
SOUNDS = {
    "batch": (WAVES, LENGTHS_OF_SOUND),
    "padded": (F.pad(WAVES, (0, 1_500)), LENGTHS_OF_SOUND),
    "altered": (ALTERED, LENGTHS_OF_SOUND),
    "expected_failures": NO_SOUND,
}
BERT = TextConfig(vocab_size=50, max_length=32, classes=4, segments=2, encoder=POST)
MODERN = TextConfig(
    vocab_size=50,
    max_length=64,
    classes=3,
    positions="none",
    pool="mean",
    encoder=replace(TINY, rotary="1d", rotary_theta=(1e5, 1e4), first_norm=False, activation="geglu", norm_bias=False),
)
TEXTS = {"batch": words(12), "padded": words(20), "altered": words(12, seed=1)}
MASKED = replace(BERT, head="tokens", segments=0, head_activation="gelu", head_norm=True)


def real_words(module, ids, mask):
    return module(ids, mask).where(mask[..., None], 0)


def told_words(module, ids, mask):
    return F.cross_entropy(module(ids, mask)[mask], ids[mask])


THINGS = MultimodalConfig(joint_dim=16, encoder=TINY)
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])


def things(more=0, seed=0):
    """Three things, some not shown in all ways, and anything where they are not."""
    lengths = torch.tensor([3_000, 2_000, 2_400])
    heard = (torch.arange(3_000 + more) < lengths[:, None]) & PRESENT[:, 1:2]
    waves = F.pad(fixed(3, 3_000), (0, more)).where(heard, fixed(3, 3_000 + more, seed=seed))
    images = fixed(3, 1, 8, 8).where(PRESENT[:, 0, None, None, None], fixed(3, 1, 8, 8, seed=seed))
    return images, waves, lengths, *words(12 + more // 500, seed=seed), PRESENT


MOVED = {"batch-changes-nothing": "the longest clip of the batch decides where a word stands in the joined sequence"}
MANY = {
    "batch": things(),
    "padded": things(more=2_000),
    "altered": things(seed=1),
    "expected_failures": NO_SOUND,
}
FOLD = FoldConfig(pair_dim=16, reach=4, rounds=2, encoder=replace(TINY, rotary="1d"))


def far_from_their_places(module, *inputs):
    """Vectors of length 1 have places of length 1 to go to."""
    vectors, places = torch.stack(module(*inputs)), F.normalize(fixed(3, 3, 16), dim=-1)
    return (vectors - places)[PRESENT.T].square().mean()


def chain(length, seed=0):
    ids, mask = words(length, seed=seed)
    return ids % 2, mask


def contacts(module, residues, mask):
    """Of real residues."""
    return module(residues, mask).where(mask[:, :, None] & mask[:, None, :], 0)


def wrong_contacts(module, residues, mask):
    pairs = mask[:, :, None] & mask[:, None, :]
    wanted = 2.0 * (residues[:, :, None] == residues[:, None, :]) - 1
    return (module(residues, mask) - wanted)[pairs].square().mean()


CHAINS = {"batch": chain(12), "padded": chain(20), "altered": chain(12, seed=1), "call": contacts}
MODELS = [
    model(ViT, "ViT", VIEW, IMAGES, {"large"} | GRAPH, compiler="eager"),
    model(
        ViT,
        "ViT, registers, mean, rotary",
        replace(
            VIEW,
            class_token=False,
            registers=2,
            pool="mean",
            positions="sincos",
            encoder=replace(TINY, rotary="2d", rotary_unit=True),
        ),
        IMAGES,
        {"large"},
    ),
    model(ViT, "ViT, attention pool", replace(VIEW, pool="attention", class_token=False), IMAGES, {"large"}),
    model(
        ViT,
        "ViT, shared",
        replace(VIEW, encoder=replace(TINY, shared_groups=1)),
        IMAGES,
        weights=learns(ViT(replace(VIEW, encoder=replace(TINY, depth=1)))),
    ),
    model(
        ViT,
        "ViT, sparse",
        replace(VIEW, image_size=40, encoder=replace(TINY, patterns=Window2d(2))),
        LARGE,
        sized=picture,
        cost=1.2,
        cost_lengths=(256, 512, 1024, 2048),
    ),
    model(AST, "AST", SOUND, **SOUNDS),
    model(
        AST,
        "AST, mean, rotary",
        replace(SOUND, pool="mean", positions="none", encoder=replace(TINY, rotary="2d")),
        **SOUNDS,
    ),
    model(
        AST,
        "AST, sparse",
        replace(SOUND, encoder=replace(TINY, patterns=Window2d(1, exact=True))),
        **SOUNDS,
    ),
    model(TextEncoder, "BERT", BERT, claims={"export"}, **TEXTS),
    model(TextEncoder, "ModernBERT", MODERN, **TEXTS),
    model(
        TextEncoder,
        "ModernBERT, sparse",
        replace(MODERN, max_length=200, encoder=replace(MODERN.encoder, patterns=(None, Local(16, exact=True)))),
        batch=words(100, (100, 70, 3)),
        padded=words(140, (100, 70, 3)),
        altered=words(100, (100, 70, 3), seed=1),
    ),
    model(
        TextEncoder,
        "ALBERT",
        replace(BERT, embedding_dim=8, encoder=replace(POST, shared_groups=1)),
        **TEXTS,
        weights=learns(TextEncoder(replace(BERT, embedding_dim=8, encoder=replace(POST, depth=1)))),
    ),
    model(
        TextEncoder,
        "masked words",
        MASKED,
        call=real_words,
        loss=told_words,
        weights=learns(TextEncoder(MASKED)),
        **TEXTS,
    ),
    model(ContrastiveModel, "joint space", THINGS, loss=far_from_their_places, rate=3e-2, **MANY),
    model(
        ContrastiveModel,
        "joint space, towers",
        replace(THINGS, towers=True),
        loss=far_from_their_places,
        rate=3e-2,
        **MANY,
    ),
    model(FusedModel, "fused", replace(THINGS, classes=3), **MANY),
    model(
        FusedModel,
        "fused, sparse",
        replace(THINGS, classes=3, encoder=replace(TINY, patterns=Local(8, exact=True) | Global(1))),
        **MANY | {"expected_failures": NO_SOUND | MOVED},
    ),
    model(FoldModel, "fold", FOLD, loss=wrong_contacts, **CHAINS),
    model(
        FoldModel,
        "fold, sparse",
        replace(FOLD, encoder=replace(FOLD.encoder, patterns=Local(6, exact=True))),
        loss=wrong_contacts,
        rate=5e-3,
        **CHAINS,
    ),
]

SUBJECTS = [*ATTENTIONS, *ENCODERS, *MODELS]
# --- What ran where --------------------------------------------------------------------------------------------------


@parametrize_with_checks(SUBJECTS, without=GRAPHS)
def test_conforms(subject, check, monkeypatch):
    # Where a model runs a hundred times, the shapes in its signatures are left to the other checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", check.id in REPEATS)
    check(subject)


def test_graphs_conform():
    """torch.compile and torch.export."""
    command = [sys.executable, "-P", __file__, "graphs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    report = Report(tuple(Result(**result) for result in json.loads(done.stdout)))
    report.raise_failures()
    assert {(result.subject, result.check) for result in report.results} == every_pair(GRAPHS)


def test_every_check_of_every_subject_has_a_status():
    """None is left out: what is not checked is "not claimed", and says which claim is missing."""
    [mark] = test_conforms.pytestmark
    rest = {check.id for checks in CHECKS.values() for check in checks} - set(GRAPHS)
    assert {(subject.name, check.id) for subject, check in (case.values for case in mark.args[1])} == every_pair(rest)


def test_the_docs_tell_what_ran_where():
    """Print it with `python -P tests/test_conformance.py`."""
    declared = []
    for subject in SUBJECTS:
        for each in CHECKS[subject.kind]:
            known = "expected failure" if each.id in subject.expected_failures else "passed"
            status = known if subject.claimed.issuperset(each.needs) else "not claimed"
            declared.append(Result(subject=subject.name, check=each.id, status=status))
    assert table(declared) in (Path(__file__).parent.parent / "docs/conformance.md").read_text()


def every_pair(ids):
    return {(subject.name, check.id) for subject in SUBJECTS for check in CHECKS[subject.kind] if check.id in ids}


def table(results):
    """What ran where: a markdown table for each kind of subject."""
    kinds = {subject.name: subject.kind for subject in SUBJECTS}
    order = list(kinds)
    parts = []
    for kind, checks in CHECKS.items():
        place = {check.id: number for number, check in enumerate(checks)}
        mine = [result for result in results if kinds[result.subject] == kind]
        mine.sort(key=lambda result: (place[result.check], order.index(result.subject)))
        parts.append(Report(tuple(mine)).matrix())
    return "\n\n".join(parts)


def graph_checks():
    return [result for subject in SUBJECTS for result in check(subject, GRAPHS).results]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["graphs"]:
        print(json.dumps([asdict(result) for result in graph_checks()]))
    else:
        print(table([result for subject in SUBJECTS for result in check(subject).results]))
