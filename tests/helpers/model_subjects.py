"""Our models of every modality, as subjects of the conformance kit."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from core_subjects import GRAPH, POST, TINY, in_bf16, lora, merged, trainable_weights

from audio import AST, ASTConfig, WaveformConfig, WaveformModel
from core.sparse import Global, Local, Window2d
from core.testing import MODEL, ModelSubject, Positions
from examples.multimodal import ContrastiveModel, FusedModel, MultimodalConfig
from examples.protein.model import FoldConfig, FoldModel
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig
from vision.resizing import changed, resize


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_ids(length, lengths=(12, 7, 1), seed=0):
    """Token ids and their padding mask; the seed decides the ids of the padding alone."""
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    ids, padding = (torch.randint(1, 50, (3, 200), generator=torch.Generator().manual_seed(s)) for s in (0, seed))
    return ids[:, :length].where(mask, padding[:, :length]), mask


def model(kind, name, config, batch, claims=frozenset(), **options):
    """The subject of a model, with checkpointing and a LoRA."""
    recomputing = replace(config, encoder=replace(config.encoder, checkpointing=True))
    defaults = {"checkpointed": partial(kind, recomputing), "adapt": lora}
    defaults["merge"] = None if config.encoder.shared_groups else merged
    claims = MODEL - GRAPH | {"sparsify"} | claims
    return ModelSubject(partial(kind, config), batch, name=name, claims=claims, **defaults | options)


def to_grid(module, rows, columns):
    """As a checkpoint is read for images of another size."""
    config = changed(module.config, {"image_size": (4 * rows, 4 * columns)})
    resized = ViT(config).to(next(module.parameters()))
    resized.load_state_dict(resize(module.state_dict(), module.config, config))
    return resized


IMAGE = ViTConfig(image_size=16, patch_size=4, channels=1, classes=5, encoder=TINY)
GRID = Positions(("embed.positions.weight",), (4, 4), to_grid)
IMAGES = (normal(3, 1, 16, 16),)
RAGGED_IMAGES = [normal(1, 16, 16), normal(1, 8, 20, seed=1), normal(1, 4, 4, seed=2), normal(1, 24, 12, seed=3)]
LARGE = (normal(2, 1, 40, 40),)


def image_of_patches(length):
    """An image of `length` patches, in rows of 16."""
    return (normal(1, 1, length // 4, 64),)


AUDIO = ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, classes=4, encoder=TINY)
NO_EMPTY_BATCH = {"empty-batch": "a batch of no clips has no longest clip"}
CLIP_LENGTHS = torch.tensor([4_000, 2_500, 1_200])
CLIPS = normal(3, 4_000) * (torch.arange(4_000) < CLIP_LENGTHS[:, None])
ALTERED_CLIPS = CLIPS.where(torch.arange(4_000) < CLIP_LENGTHS[:, None], torch.nan)
AUDIO_BATCHES = {
    "ragged": [normal(length, seed=length) for length in (4_000, 2_500, 300, 1_200)],
    "batch": (CLIPS, CLIP_LENGTHS),
    "padded": (F.pad(CLIPS, (0, 1_500)), CLIP_LENGTHS),
    "altered": (ALTERED_CLIPS, CLIP_LENGTHS),
    "expected_failures": NO_EMPTY_BATCH,
}
WAVES = WaveformConfig(
    conv_dims=(8,) * 7,
    position_kernel=8,
    position_groups=2,
    classes=4,
    head_layers=True,
    head_width=8,
    encoder=replace(TINY, norm_order="post"),
)
BERT = TextConfig(vocab_size=50, max_length=32, classes=4, segments=2, encoder=POST)
MODERN = TextConfig(
    vocab_size=50,
    max_length=64,
    classes=3,
    positions="none",
    pool="mean",
    encoder=replace(TINY, rotary="1d", rotary_theta=(1e5, 1e4), first_norm=False, activation="geglu", norm_bias=False),
)
TEXTS = [torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 1, 24, 12)]
TEXT_BATCHES = {"ragged": TEXTS, "batch": token_ids(12), "padded": token_ids(20), "altered": token_ids(12, seed=1)}
TEXT_BATCHES["emptied"] = (token_ids(12)[0], token_ids(12, (0, 7, 1))[1])
LEFT = [
    torch.stack([row.roll(-int(n)) for row, n in zip(t, token_ids(12)[1].sum(1), strict=True)]) for t in token_ids(12)
]
MASKED_LM = replace(BERT, head="tokens", segments=0, head_activation="gelu", head_norm=True)


def real_tokens(module, ids, mask):
    return module(ids, mask).where(mask[..., None], 0)


def token_loss(module, ids, mask):
    return F.cross_entropy(module(ids, mask)[mask], ids[mask])


JOINT = MultimodalConfig(joint_dim=16, encoder=TINY)
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])


def samples(more=0, seed=0):
    """Three samples, some without all modalities, and other values where one is absent."""
    lengths = torch.tensor([3_000, 2_000, 2_400])
    real = (torch.arange(3_000 + more) < lengths[:, None]) & PRESENT[:, 1:2]
    waves = F.pad(normal(3, 3_000), (0, more)).where(real, normal(3, 3_000 + more, seed=seed))
    images = normal(3, 1, 8, 8).where(PRESENT[:, 0, None, None, None], normal(3, 1, 8, 8, seed=seed))
    return images, waves, lengths, *token_ids(12 + more // 500, seed=seed), PRESENT


JOINT_BATCHES = {
    "batch": samples(),
    "padded": samples(more=2_000),
    "altered": samples(seed=1),
}
FOLD = FoldConfig(pair_dim=16, reach=4, rounds=2, encoder=replace(TINY, rotary="1d"))


def distance_to_unit_vectors(module, *inputs):
    """The vectors have length 1, and so have the goals."""
    vectors, goals = torch.stack(module(*inputs)), F.normalize(normal(3, 3, 16), dim=-1)
    return (vectors - goals)[PRESENT.T].square().mean()


def chain(length, seed=0):
    ids, mask = token_ids(length, seed=seed)
    return ids % 2, mask


def contacts(module, residues, mask):
    """The logits of real residues; 0 for padding."""
    return module(residues, mask).where(mask[:, :, None] & mask[:, None, :], 0)


def contact_loss(module, residues, mask):
    pairs = mask[:, :, None] & mask[:, None, :]
    targets = 2.0 * (residues[:, :, None] == residues[:, None, :]) - 1
    return (module(residues, mask) - targets)[pairs].square().mean()


CHAIN_BATCHES = {"batch": chain(12), "padded": chain(20), "altered": chain(12, seed=1), "call": contacts}
MODELS = [
    model(
        ViT,
        "ViT",
        IMAGE,
        IMAGES,
        {"large"} | GRAPH,
        compiler="eager",
        ragged=RAGGED_IMAGES,
        positions=GRID,
        quantise=in_bf16,
    ),
    model(
        ViT,
        "ViT, registers, mean, rotary",
        replace(
            IMAGE,
            class_token=False,
            registers=2,
            pool="mean",
            positions="sincos",
            encoder=replace(TINY, rotary="2d", rotary_unit=True),
        ),
        IMAGES,
        {"large"},
        ragged=RAGGED_IMAGES,
    ),
    model(
        ViT,
        "ViT, attention pool",
        replace(IMAGE, pool="attention", class_token=False),
        IMAGES,
        {"large"},
        ragged=RAGGED_IMAGES,
    ),
    model(
        ViT,
        "ViT, shared",
        replace(IMAGE, encoder=replace(TINY, shared_groups=1)),
        IMAGES,
        ragged=RAGGED_IMAGES,
        weights=trainable_weights(ViT(replace(IMAGE, encoder=replace(TINY, depth=1)))),
    ),
    model(
        ViT,
        "ViT, sparse",
        replace(IMAGE, image_size=40, encoder=replace(TINY, patterns=Window2d(2))),
        LARGE,
        ragged=RAGGED_IMAGES,
        sized=image_of_patches,
        cost=1.2,
        cost_lengths=(256, 512, 1024, 2048),
    ),
    model(AST, "AST", AUDIO, **AUDIO_BATCHES),
    model(
        AST,
        "AST, mean, rotary",
        replace(AUDIO, pool="mean", positions="none", encoder=replace(TINY, rotary="2d")),
        **AUDIO_BATCHES,
    ),
    model(
        AST,
        "AST, sparse",
        replace(AUDIO, encoder=replace(TINY, patterns=Window2d(1, exact=True))),
        **AUDIO_BATCHES,
    ),
    model(WaveformModel, "waveforms", WAVES, **AUDIO_BATCHES),
    model(
        WaveformModel,
        "waveforms, layer norms",
        replace(
            WAVES,
            conv_norm="all",
            conv_bias=True,
            position_layers=3,
            position_norm=True,
            embedding_norm=False,
            head_layers=False,
            head_width=0,
            encoder=replace(TINY, distance_bias=(8, 9), distance_gate=True),
        ),
        **AUDIO_BATCHES,
    ),
    model(TextEncoder, "BERT", BERT, claims={"export"}, **TEXT_BATCHES),
    model(TextEncoder, "ModernBERT", MODERN, left=LEFT, **TEXT_BATCHES),
    model(
        TextEncoder,
        "ModernBERT, sparse",
        replace(MODERN, max_length=200, encoder=replace(MODERN.encoder, patterns=(None, Local(16, exact=True)))),
        batch=token_ids(100, (100, 70, 3)),
        padded=token_ids(140, (100, 70, 3)),
        altered=token_ids(100, (100, 70, 3), seed=1),
    ),
    model(
        TextEncoder,
        "ALBERT",
        replace(BERT, embedding_dim=8, encoder=replace(POST, shared_groups=1)),
        **TEXT_BATCHES,
        weights=trainable_weights(TextEncoder(replace(BERT, embedding_dim=8, encoder=replace(POST, depth=1)))),
    ),
    model(
        TextEncoder,
        "masked tokens",
        MASKED_LM,
        call=real_tokens,
        loss=token_loss,
        weights=trainable_weights(TextEncoder(MASKED_LM)),
        **TEXT_BATCHES | {"ragged": None},  # the call takes a mask
    ),
    model(ContrastiveModel, "joint space", JOINT, loss=distance_to_unit_vectors, rate=3e-2, **JOINT_BATCHES),
    model(
        ContrastiveModel,
        "joint space, towers",
        replace(JOINT, towers=True),
        loss=distance_to_unit_vectors,
        rate=3e-2,
        **JOINT_BATCHES,
    ),
    model(FusedModel, "fused", replace(JOINT, classes=3), **JOINT_BATCHES),
    model(
        FusedModel,
        "fused, sparse",
        replace(JOINT, classes=3, encoder=replace(TINY, patterns=Local(8, exact=True) | Global(1))),
        **JOINT_BATCHES,
    ),
    model(FoldModel, "fold", FOLD, loss=contact_loss, **CHAIN_BATCHES),
    model(
        FoldModel,
        "fold, sparse",
        replace(FOLD, encoder=replace(FOLD.encoder, patterns=Local(6, exact=True))),
        loss=contact_loss,
        rate=5e-3,
        **CHAIN_BATCHES,
    ),
]
