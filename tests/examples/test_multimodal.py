"""Image, audio and text on one encoder: what is absent or padded never counts."""

import itertools

import numpy as np
import pytest
import torch
from multimodal_samples import PAD, samples

from core import IGNORE, Batch, Contrastive, EncoderConfig, Tokens, UserError
from core.encoder.pack import pack
from core.sparse import Global, Local
from examples.multimodal import MODALITIES, ContrastiveModel, FusedModel, MultimodalConfig, Things, join, words
from examples.multimodal.data import collate, drop_modalities, formats
from examples.multimodal.digits import Digits
from examples.multimodal.objectives import JointSpace, directions, only

ENCODER = EncoderConfig(dim=16, depth=2, heads=2)

pytestmark = pytest.mark.usefixtures("elsewhere")


def make(kind, **changes):
    torch.manual_seed(0)
    options = {"encoder": ENCODER, "classes": 10 if kind is FusedModel else 0}
    return kind(MultimodalConfig(**options | changes)).eval()


def without(sample, *names):
    return sample._replace(**dict.fromkeys(names))


def test_joined_tokens_lie_one_behind_the_other():
    parts = [torch.randn(length, 4) for length in (3, 2, 1, 4)]
    a, b = (pack([Tokens(x[None], prefix=1) for x in some]) for some in (parts[:2], parts[2:]))
    found = join([a, b], torch.tensor([[True, False], [False, False], [True, True], [False, True]]))
    assert torch.equal(found.x[0], torch.cat([parts[0], parts[1], parts[2], parts[3]]))
    assert found.packing.places.tolist() == [[3, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0], [4, 0, 0, 0]]
    found = join([a, b], torch.ones(2, 2, dtype=torch.bool))
    assert torch.equal(found.x[0], torch.cat([parts[0], parts[2], parts[1], parts[3]]))
    assert found.packing.lengths.tolist() == [4, 6]


@pytest.mark.parametrize("kind", [ContrastiveModel, FusedModel])
def test_a_sample_alone_is_as_in_a_batch(kind):
    model, things = make(kind), samples()
    with torch.no_grad():
        together = model(*collate(things, PAD).inputs)
        for number, sample in enumerate(things):
            alone = model(*collate([sample], PAD).inputs)
            for found, expected in (
                zip(alone, together, strict=True) if kind is ContrastiveModel else [(alone, together)]
            ):
                torch.testing.assert_close(found[0], expected[number], rtol=0, atol=1e-5)


@pytest.mark.parametrize("gone", [("image",), ("audio",), ("text",), ("image", "audio"), ("audio", "text")])
def test_an_absent_modality_is_as_if_there_was_none(gone):
    model, things = make(FusedModel), samples()
    lacking = [without(sample, *gone) for sample in things]
    bare = collate(lacking, PAD)
    assert sum(part is None for part in bare.inputs) == sum({"image": 1, "audio": 2, "text": 2}[name] for name in gone)
    masked = only(collate(things, PAD), [name for name in MODALITIES if name not in gone])
    mixed = collate([*lacking, things[0]], PAD)
    poisoned = [x.clone() if x is not None else None for x in masked.inputs]
    for name, place in (("image", 0), ("audio", 1)):
        if name in gone:
            poisoned[place].fill_(torch.nan)
    with torch.no_grad():
        expected = model(*bare.inputs)
        for inputs in (masked.inputs, poisoned, mixed.inputs):
            torch.testing.assert_close(model(*inputs)[: len(things)], expected, rtol=0, atol=1e-5)
        assert not torch.allclose(model(*collate(things, PAD).inputs), expected, atol=1e-3)


SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(MODALITIES, size)]


def lists(things):
    """The inputs of a model, without padding; the things need not have all modalities."""
    return {
        "images": [t.image for t in things],
        "waveforms": [t.audio for t in things],
        "ids": [t.text for t in things],
    }


def outputs(model, *inputs, **named):
    """The results as one tensor "things ..."."""
    found = model(*inputs, **named)
    return torch.stack(found, dim=1) if isinstance(found, tuple) else found


@pytest.mark.parametrize(
    "kind, changes",
    [
        (ContrastiveModel, {}),
        (ContrastiveModel, {"towers": True}),
        (FusedModel, {}),
        (FusedModel, {"encoder": EncoderConfig(dim=16, depth=2, heads=2, rotary="1d", patterns=Local(8) | Global(1))}),
    ],
    ids=["joint", "towers", "fused", "fused, sparse"],
)
def test_any_subsets_in_one_batch_are_as_alone(kind, changes):
    """Each thing has another subset; outputs and gradients are those of one thing after the other."""
    model = make(kind, **changes).double()
    things = []
    for sample, subset in zip(samples(len(SUBSETS)), SUBSETS, strict=True):
        sample = sample._replace(image=sample.image.double(), audio=sample.audio.double())
        things.append(without(sample, *set(MODALITIES) - set(subset)))
    expected = torch.cat([outputs(model, **lists([thing])) for thing in things])
    weights, parameters = torch.randn_like(expected), list(model.parameters())
    found = torch.autograd.grad((weights * expected).sum(), parameters, allow_unused=True)
    for together in (outputs(model, **lists(things)), outputs(model, *collate(things, PAD).inputs)):
        torch.testing.assert_close(together, expected, rtol=0, atol=1e-10)
        again = torch.autograd.grad((weights * together).sum(), parameters, allow_unused=True)
        for (name, _), a, b in zip(model.named_parameters(), again, found, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=name)


def test_the_encoder_is_given_no_tokens_of_what_is_absent():
    things = samples(3)
    things = [without(things[0], "audio", "text"), without(things[1], "image"), things[2]]
    model, seen = make(FusedModel), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].packing.lengths.tolist()))
    model(**lists(things))
    model(*collate(things, PAD).inputs)
    clips = [model.embed._clips(Things(**lists(things[n : n + 1])), torch.tensor([True])).x.shape[1] for n in (1, 2)]
    expected = [1 + 9, 1 + clips[0] + 4, 1 + 9 + clips[1] + 5]
    assert seen == [expected, expected]


def test_images_of_any_sizes_are_as_alone():
    model = make(FusedModel)
    images = [torch.randn(1, 8, 8), None, torch.randn(1, 12, 6), torch.randn(1, 4, 16)]
    ids = [sample.text for sample in samples(4)]
    with torch.no_grad():
        together = model(images=images, ids=ids)
        for number, (image, text) in enumerate(zip(images, ids, strict=True)):
            torch.testing.assert_close(model(images=[image], ids=[text])[0], together[number], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({}, "A batch of no things"),
        ({"images": torch.zeros(2, 1, 8, 8), "ids": [torch.tensor([5])]}, "A batch of 1 or 2 things"),
        (
            {"images": [None], "present": torch.tensor([[True, False, False]])},
            "Thing 0 has image according to `present`",
        ),
        ({"ids": [torch.tensor([5]), torch.tensor([], dtype=torch.int64)]}, "Thing 1 of the list is empty: give None"),
        (
            {"waveforms": [torch.zeros(900)], "lengths": torch.tensor([900])},
            "A list of waveforms has no padding: leave out",
        ),
    ],
)
def test_things_that_contradict_each_other_are_refused(inputs, words):
    for kind in (FusedModel, ContrastiveModel):
        with pytest.raises(UserError, match=words):
            make(kind)(**inputs)


@pytest.mark.parametrize("towers", [False, True])
def test_vectors_are_as_long_as_the_scale_says(towers):
    model = make(ContrastiveModel, towers=towers)
    things = [*samples(3), without(samples()[3], "audio")]
    vectors = torch.stack(model(*collate(things, PAD).inputs))
    assert vectors.shape == (3, 4, 64)
    lengths = torch.full((3, 4), model.similarity.log_scale.exp().sqrt().item())
    lengths[1, 3] = 0
    torch.testing.assert_close(vectors.norm(dim=2), lengths)
    weights = sum(p.numel() for p in model.encoders.parameters())
    one = sum(p.numel() for p in make(ContrastiveModel).encoders.parameters())
    assert weights == (3 * one if towers else one)


def test_the_loss_is_the_core_s_where_all_is_there_and_leaves_out_what_is_not():
    torch.manual_seed(0)
    views, things = (
        [3 * torch.nn.functional.normalize(torch.randn(8, 5), dim=1) for _ in range(3)],
        torch.arange(8) // 2,
    )
    things[0] = IGNORE
    torch.testing.assert_close(JointSpace().joint_loss(views, things), Contrastive().joint_loss(views, things))
    lacking = [views[0], torch.zeros(8, 5), views[2]]
    expected = Contrastive().joint_loss([views[0], views[2]], things)
    torch.testing.assert_close(JointSpace().joint_loss(lacking, things), expected)
    lacking = [
        view.clone().requires_grad_() for view in (views[0], views[1].index_fill(0, torch.tensor([3]), 0), views[2])
    ]
    JointSpace().joint_loss(lacking, things).backward()
    assert not lacking[1].grad[3].any() and lacking[0].grad[3].any()


def test_directions_count_what_is_found():
    """Two things, twice each; in audio, one sample of the second looks like the first."""
    eye = torch.eye(2)
    image, audio, text = eye[[0, 0, 1, 1]], eye[[0, 0, 1, 0]], torch.zeros(4, 2)
    found = directions(torch.stack([image, audio, text], dim=1), torch.tensor([7, 7, 9, 9]))
    assert [(d.query, d.among) for d in found] == [("image", "audio"), ("audio", "image")]
    assert found[0].zero_shot == 1 and found[1].zero_shot == 0.75
    assert found[0].recall_1 == 1 and found[1].recall_1 == 0.75 and found[1].recall_5 == 1
    assert found[1].median_rank == 1


def test_dropping_modalities_leaves_one():
    present = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    present[:, 0] |= ~present.any(dim=1)
    batch = Batch((*[None] * 5, present), torch.zeros(200))
    torch.manual_seed(0)
    kept = drop_modalities(batch, 0.7).inputs[-1]
    assert kept.any(dim=1).all() and not (kept & ~present).any()
    assert 0.3 < kept.sum() / present.sum() < 0.7


def test_held_out_spellings_are_new_and_no_name_means_two_digits():
    spellings = words.spellings()
    train = spellings.train
    known, validated, tested = ({text for texts in part for text in texts} for part in spellings.parts().values())
    assert all(spellings.validation) and all(spellings.test)
    assert not known & tested and not known & validated and not validated & tested
    owners = {}
    for digit, texts in enumerate([*a, *b, *c] for a, b, c in zip(*spellings.parts().values(), strict=True)):
        for text in texts:
            assert owners.setdefault(text.casefold(), digit) == digit, text
    seen = [" ".join(texts).casefold() for texts in train]
    assert all(name.casefold() in seen[d] for names in words.NAMES.values() for d, name in enumerate(names.split()))


def test_digits_show_one_digit_in_three_ways():
    data = Digits(image_noise=0.3, misspellings=1).read(formats(MultimodalConfig()))
    draws = np.random.default_rng(0).random((5, data.train.draws))
    indices = [3, 1, 4, 1, 5]
    together = data.train.make(indices, draws)
    for number, sample in enumerate(together):  # it depends on its own numbers alone
        alone = data.train.make([indices[number]], draws[number : number + 1])[0]
        assert (
            all(torch.equal(a, b) for a, b in zip(alone[:3], sample[:3], strict=True)) and alone.thing == sample.thing
        )
    assert [len(part) for part in data.parts().values()] == [1293, 144, 360]
    for part in (data.validation, data.test):
        assert sorted({sample.thing for sample in part}) == list(range(10))
    again = Digits(image_noise=0.3, misspellings=1).read(formats(MultimodalConfig()))
    assert all(torch.equal(a, b) for a, b in zip(data.test[7][:3], again.test[7][:3], strict=True))
