"""Masked autoencoding of samples of any sizes in one row: each gets what it gets alone, forward and backward."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from audio import AST, ASTConfig
from core import EncoderConfig, Tokens, UserError, sincos_positions
from core.attention.packing import Packing, Place
from core.encoder.positions import sincos_positions_of_row
from core.objectives import Batch, MaskedAutoencoder, MaskedConfig, MaskedPatches, MaskedPrediction
from core.objectives.patch_masking import WithMaskNoise, block_noise, count_masked, mask_packed_patches, mask_patches
from core.sparse import Window2d
from vision import ViT, ViTConfig

ENCODER = EncoderConfig(dim=32, depth=2, heads=2, mlp_dim=48)
SIZES = [(12, 12), (6, 18), (3, 3), (9, 3), (6, 6)]  # pixels; patches of 3 x 3
GRIDS = [(rows // 3, columns // 3) for rows, columns in SIZES]
LARGEST = (4, 6)


def make(**changes):
    torch.manual_seed(0)
    options = {"image_size": 12, "patch_size": 3, "channels": 2, "classes": 0, "registers": 1, "encoder": ENCODER}
    model = ViT(ViTConfig(**options | changes))
    return MaskedAutoencoder(model, MaskedConfig(ratio=0.6, dim=16, heads=2), 18).double().eval()


def make_audio():
    torch.manual_seed(0)
    config = ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, classes=0, encoder=ENCODER)
    return MaskedAutoencoder(AST(config), MaskedConfig(ratio=0.6, dim=16, heads=2), 64).double().eval()


def images(sizes=SIZES):
    return [torch.randn(2, *size, dtype=torch.float64) for size in sizes]


def noise(count=5):
    return torch.rand(count, *LARGEST, dtype=torch.float64)


def one_by_one(autoencoder, tokens: list[Tokens], draws):
    """The patches that are masked and the predictions of each sample, by the definition of the method."""
    for sample, draw in zip(tokens, draws, strict=True):
        grid, prefix = sample.grid, sample.prefix
        draw = draw[: grid[0], : grid[1]].flatten()
        order = draw.argsort()
        count = int(count_masked(len(draw), autoencoder.config.ratio))
        visible = order[count:].sort().values
        left = torch.cat([torch.arange(prefix), prefix + visible])
        seen = torch.zeros(1, sample.x.shape[1], dtype=torch.bool).index_fill(1, left, True)
        whole = autoencoder.model.encoder(Tokens(sample.x, mask=seen, grid=grid, prefix=prefix)).x
        encoded = autoencoder.decoder.embed(whole[:, left])
        body = autoencoder.decoder.mask_token.repeat(1, len(draw), 1).index_copy(1, visible, encoded[:, prefix:])
        body = body + sincos_positions(autoencoder.config.dim, grid).to(body)
        x = torch.cat([encoded[:, :prefix], body], dim=1)
        decoded = autoencoder.decoder.encoder(Tokens(x, grid=grid, prefix=prefix)).body
        masked = torch.ones(len(draw), dtype=torch.bool).index_fill(0, visible, False)
        yield masked, autoencoder.head(decoded)[0]


def check(autoencoder, inputs, tokens, draws, take):
    """take: the values of one sample among those of the batch."""
    other = copy.deepcopy(autoencoder)
    prediction = autoencoder(*inputs, draws)
    assert prediction.predicted.dtype == torch.float64
    losses, reference = [], one_by_one(other, tokens(other.model), draws)
    for number, (masked, predicted) in enumerate(reference):
        assert torch.equal(take(prediction.masked, number), masked)
        torch.testing.assert_close(take(prediction.predicted, number), predicted, rtol=0, atol=1e-10)
        losses.append((predicted - take(prediction.target, number)).square().mean(dim=1)[masked].mean())
    errors = MaskedPatches().errors(prediction)[0]
    torch.testing.assert_close(errors, torch.stack(losses), rtol=0, atol=1e-10)
    for loss in (errors.sum(), torch.stack(losses).sum()):
        loss.backward()
    for (name, parameter), expected in zip(autoencoder.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=0, atol=1e-10, msg=name)


def part(values, packing, number):
    start, length = packing.starts[number], packing.lengths[number]
    return values[0, start : start + length]


PLACED = [{"rotary": "2d", "rotary_unit": True}, {"relative_bias": (4, 4)}, {"patterns": Window2d(1), "rotary": "2d"}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"registers": 0},
        {"class_token": False, "registers": 0, "pool": "mean"},
        *({"encoder": replace(ENCODER, **each)} for each in PLACED),
    ],
)
def test_images_of_any_sizes_are_as_alone(changes):
    model, batch = make(**changes), images()
    packing = Packing.of(Place(rows * columns, 0, (rows, columns)) for rows, columns in GRIDS)
    check(
        model,
        (batch,),
        lambda vit: [vit.embed(image[None]) for image in batch],
        noise(),
        lambda values, number: part(values, packing, number),
    )


def test_images_of_one_size_are_as_alone_and_are_not_packed():
    model, batch, seen = make(), torch.stack(images([(12, 12)] * 3)), []
    check(
        model,
        (batch,),
        lambda vit: [vit.embed(image[None]) for image in batch],
        noise(3),
        lambda values, number: values[number],
    )
    model.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch, noise(3))
    assert seen[0].packing is None and seen[0].mask is None and seen[0].x.shape[1] == 2 + 16 - 10


@pytest.mark.parametrize("changes", PLACED)
def test_images_of_one_size_whose_encoder_knows_positions_are_as_alone(changes):
    batch = torch.stack(images([(12, 12)] * 3))
    check(
        make(encoder=replace(ENCODER, **changes)),
        (batch,),
        lambda vit: [vit.embed(image[None]) for image in batch],
        noise(3),
        lambda values, number: values[number],
    )


def test_clips_of_any_lengths_are_as_alone():
    """A padded batch goes to the encoder and the decoder without its padding."""
    model, lengths, seen = make_audio(), torch.tensor([4_000, 900, 2_300]), []
    clips = torch.randn(3, 4_000, dtype=torch.float64) * (torch.arange(4_000) < lengths[:, None])
    grids = [tokens.grid for tokens in _alone(model.model, clips, lengths)]
    draws = torch.rand(3, *model.model.embed.grid, dtype=torch.float64)
    check(
        model,
        (clips, lengths),
        lambda ast: _alone(ast, clips, lengths),
        draws,
        lambda values, number: values[number].unflatten(0, (2, -1))[:, : grids[number][1]].flatten(0, 1),
    )
    for encoder in (model.model.encoder, model.decoder.encoder):
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].packing.lengths.tolist()))
    prediction = model(clips, lengths, draws)
    patches = [rows * columns for rows, columns in grids]
    assert len(set(patches)) == 3
    assert seen == [[2 + n - int(count_masked(n, 0.6)) for n in patches], [2 + n for n in patches]]
    beyond = prediction.predicted[1].unflatten(0, (2, -1))[:, grids[1][1] :]
    assert beyond.numel() and not beyond.any()


def test_a_list_of_clips_is_as_a_padded_batch():
    model, lengths = make_audio(), [4_000, 900, 2_300]
    clips = [torch.randn(length, dtype=torch.float64) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    draws = torch.rand(3, *model.model.embed.grid, dtype=torch.float64)
    packed, batch = model(clips, draws), model(padded, torch.tensor(lengths), draws)
    assert packed.packing is not None and packed.masked.sum() == batch.masked.sum()
    torch.testing.assert_close(*(MaskedPatches().errors(p)[0] for p in (packed, batch)), rtol=0, atol=1e-10)


def _alone(ast, clips, lengths):
    return [
        ast.tokens(clip[None, :length], torch.tensor([length]))
        for clip, length in zip(clips, lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("prefix", [0, 2])
def test_samples_of_one_patch_alone_are_predicted_from_their_prefix(prefix):
    changes = {} if prefix else {"class_token": False, "registers": 0, "pool": "mean"}
    model, batch = make(**changes), images([(3, 3)] * 2)
    prediction = model(batch, noise(2))
    assert prediction.masked.all() and prediction.predicted.isfinite().all()
    alone = [model([image], draw[None]) for image, draw in zip(batch, noise(2), strict=True)]
    torch.testing.assert_close(torch.cat([p.predicted for p in alone], dim=1), prediction.predicted)


def test_the_ratio_is_masked_of_each_sample_s_patches():
    packing = Packing.of(Place(rows * columns, 0, (rows, columns)) for rows, columns in GRIDS)
    draws = noise()
    for ratio in (0.01, 0.3, 0.6, 0.75, 0.999):
        found = mask_packed_patches(draws, packing, count_masked(packing.lengths, ratio)).split(
            packing.lengths.tolist()
        )
        for number, (masked, (rows, columns)) in enumerate(zip(found, GRIDS, strict=True)):
            alone = mask_patches(draws[number : number + 1, :rows, :columns].flatten(1), None, ratio)[0]
            assert torch.equal(masked, alone)
            assert 1 <= masked.sum() <= max(len(masked) - 1, 1)


def test_blocks_stay_whole_in_smaller_grids():
    """Stretches of columns over all rows, of each sample's own grid."""
    random = np.random.default_rng(0)
    draws = torch.stack([block_noise(random, LARGEST, (LARGEST[0], 1)) for _ in GRIDS])
    packing = Packing.of(Place(rows * columns, 0, (rows, columns)) for rows, columns in GRIDS)
    found = mask_packed_patches(draws, packing, count_masked(packing.lengths, 0.5)).split(packing.lengths.tolist())
    for masked, (rows, columns) in zip(found, GRIDS, strict=True):
        by_column = masked.reshape(rows, columns).sum(dim=0)
        assert ((by_column > 0) & (by_column < rows)).sum() <= 1  # the count may end within a block


def test_errors_are_means_over_each_sample_s_masked_patches():
    packing = Packing.of([Place(3, 0, (1, 3)), Place(1, 0, (1, 1)), Place(0), Place(2, 0, (2, 1))])
    target = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]])
    masked = torch.tensor([[True, False, True, True, False, True]])
    prediction = MaskedPrediction(target, torch.zeros_like(target), masked, packing)
    assert MaskedPatches().errors(prediction)[0].tolist() == [5.0, 16.0, 0.0, 36.0]


def test_the_gradient_reaches_everything_and_training_learns():
    model, objective = make().float().train(), MaskedPatches()
    inputs = ([image.float() for image in images()], noise().float())
    batch = Batch(inputs, torch.zeros(len(SIZES)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = objective.loss(model, batch)
        loss.backward()
        if not step:
            assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert objective.evaluate(model, batch)["loss"].shape == (len(SIZES),)


def test_packed_patches_are_reconstructed():
    model, batch = make(), images()
    patches, prediction = model.model.patches(batch), model(batch, noise())
    right = prediction._replace(predicted=prediction.target)
    torch.testing.assert_close(model.reconstruct(right, patches), patches, rtol=0, atol=1e-6)
    visible = ~prediction.masked
    assert torch.equal(model.reconstruct(prediction, patches)[visible], patches[visible])


def test_positions_in_a_row_are_those_of_each_grid():
    packing = Packing.of(Place(1 + rows * columns, 1, (rows, columns)) for rows, columns in GRIDS)
    found = sincos_positions_of_row(16, packing.tokens()).split(packing.lengths.tolist())
    for own, grid in zip(found, GRIDS, strict=True):
        assert not own[0].any() and torch.equal(own[1:], sincos_positions(16, grid))


def test_what_cannot_be_masked_is_refused():
    model, batch = make(), images()
    with pytest.raises(
        UserError, match="noise is for 5 samples of at most 3 x 6 patches, but there are 5 of up to 4 x 6"
    ):
        model(batch, noise()[:, :3])
    with pytest.raises(UserError, match="noise is for 4 samples"):
        model(batch, noise(4))
    with pytest.raises(UserError, match="Masked autoencoding needs tokens with a grid, but sequence 1"):
        tokens = Tokens(torch.randn(1, 6, 32), packing=Packing.of([Place(4, 0, (2, 2)), Place(2)]))
        model.model.tokens = lambda images: tokens
        model(batch, noise())


def test_tokens_that_are_spared_are_never_masked():
    """Texts of 1 to 9 tokens inside a frame of two, with the noise that a data set gives."""
    lengths = range(3, 12)
    samples = [(torch.zeros(length),) for length in lengths]
    noise = WithMaskNoise(samples, lambda sample: (len(sample[0]), 1), (1, 1), fixed=True, frame=(1, 1))
    draws = pad_sequence([draw for _, draw in noise], batch_first=True)
    packing = Packing.of(Place(length) for length in lengths)
    for ratio in (0.1, 0.5, 0.8, 0.99):
        counts = count_masked(packing.lengths, ratio, spared=2)
        for masked, length in zip(mask_packed_patches(draws, packing, counts).split([*lengths]), lengths, strict=True):
            assert not masked[0] and not masked[-1]
            assert masked.sum() == min(max(round(ratio * length), 1), length - 2)
