"""Texts as token ids: masked, padded, put into batches, cut."""

import json
from contextlib import nullcontext
from functools import partial
from itertools import chain

import numpy as np
import pytest
import tokenizers
import torch
from torch import nn

from core import IGNORE, Regression, UserError
from core.data.dataset import SplitFractions
from core.models.targets import standardised
from core.training.sampling import Order, SeededDataset
from text.corpora import Text, read_manifest
from text.datasets import Manifest, MaskedTexts, collate, collate_padded, in_pieces, mask_tokens, shortened
from text.tokenizer import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(["one two three four five six seven eight nine ten"] * 3, TokenizerConfig(vocab_size=60))


def test_masked_tokens_are_devlins():
    ids = torch.cat([torch.tensor([TOKENIZER.first]), torch.full((10_000,), 7), torch.tensor([TOKENIZER.last])])
    inputs, targets = mask_tokens(ids, TOKENIZER, torch.Generator().manual_seed(0))
    masked = targets != IGNORE
    assert masked.sum() == 1500 and not masked[0] and not masked[-1]
    assert torch.equal(targets[masked], ids[masked]) and torch.equal(inputs[~masked], ids[~masked])
    assert 0.77 < (inputs[masked] == TOKENIZER.mask).float().mean() < 0.83
    others = (inputs[masked] != TOKENIZER.mask) & (inputs[masked] != 7)
    assert 0.07 < others.float().mean() < 0.13
    shortest = torch.tensor([TOKENIZER.first, 7, TOKENIZER.last])
    assert (mask_tokens(shortest, TOKENIZER)[1] != IGNORE).tolist() == [False, True, False]


def test_masked_tokens_are_a_function_of_seed_epoch_and_index():
    texts = [Text("one two three four five six seven eight nine ten", 0, "")] * 3
    ids = [TOKENIZER.frame(numbers) for numbers in TOKENIZER.encode([text.text for text in texts])]
    train, test = (MaskedTexts(texts, ids, TOKENIZER, fixed) for fixed in (False, True))
    seeded, other = SeededDataset(train, 0), SeededDataset(train, 1)
    draws = [seeded[(epoch, 1)][1] for epoch in range(8)]
    torch.rand(5)
    assert torch.equal(seeded[(3, 1)][1], draws[3])
    assert len({tuple(draw.tolist()) for draw in draws}) > 1
    assert any(not torch.equal(other[(epoch, 1)][1], draws[epoch]) for epoch in range(8))
    assert torch.equal(test[1][0], test[1][0]) and torch.equal(test[1][1], test[1][1])
    assert len({tuple(test[i][1].tolist()) for i in range(3)}) > 1


def test_batches_are_padded_to_the_longest_and_have_a_mask_only_if_padded():
    samples = [(torch.arange(1, n + 1), torch.tensor(n)) for n in (2, 4, 3)]
    (ids, mask), targets = collate_padded(samples, pad=9)
    assert ids.tolist() == [[1, 2, 9, 9], [1, 2, 3, 4], [1, 2, 3, 9]] and targets.tolist() == [2, 4, 3]
    assert mask.sum(dim=1).tolist() == [2, 4, 3] and (ids[~mask] == 9).all()
    assert collate_padded([samples[0], samples[0]], pad=9).inputs[1] is None
    words = collate_padded([(numbers, numbers) for numbers, _ in samples], pad=9).targets
    assert words[0].tolist() == [1, 2, IGNORE, IGNORE]


def test_bucketed_batches_pad_little_and_miss_nothing():
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(16), np.log(512), 4096)).astype(int)
    samples = [(torch.zeros(n, dtype=torch.long), torch.tensor(0)) for n in lengths.tolist()]
    gather = partial(collate_padded, pad=0)

    def waste(order):
        sizes = [gather([samples[i] for _, i in order.step(step)]).inputs[0].numel() for step in range(4096 // 16)]
        return sum(sizes) / lengths.sum()

    bucketed = Order(0, len(samples), 16, lengths.tolist(), bucket=True)
    assert waste(bucketed) < 1.1 < 2 < waste(Order(0, len(samples), 16))
    seen = [index for step in range(4096 // 16) for _, index in bucketed.step(step)]
    assert sorted(seen) == list(range(4096))


def test_long_texts_are_cut_with_a_count_or_refused():
    texts = [Text("a", 0, f"list.csv, row {number}") for number in (1, 2, 3)]
    ids = [[5] * 3, [5] * 8, [5] * 9]
    with pytest.warns(UserWarning, match="2 of 3 texts have more than 9 tokens and were cut"):
        assert [len(numbers) for numbers in shortened(texts, ids, 7, "truncate")] == [3, 7, 7]
    with pytest.raises(UserError, match="row 2: 10 tokens, but the model takes 9: shorten"):
        shortened(texts, ids, 7, "error")
    _, pieces = in_pieces(texts, [list(range(20)), [1], []], 7)
    assert [len(piece) for piece in pieces] == [6, 7, 7, 1] and [*chain(*pieces[:3])] == list(range(20))


def test_numbers_and_masked_tokens_of_a_manifest(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("text,label,split\none two,1.5,train\nthree four,-2e1,train\nfive six,0,test\n")
    numbers = read_manifest(path, "number", SplitFractions(), "utf-8")
    assert {text.target for text in (*numbers.train, *numbers.validation)} == {1.5, -20.0} and numbers.labels == ()
    config = Manifest(path=path, target="tokens", tokenizer=TokenizerConfig(vocab_size=60))
    data = config.read(16)
    assert isinstance(data.train, MaskedTexts) and [len(part) for part in data.parts().values()] == [1, 1, 1]


class Says(nn.Module):
    """A model of given outputs."""

    def __init__(self, outputs: torch.Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs):
        return self.outputs


@pytest.mark.parametrize("offset, step", [(2**24, 1.0), (1e9, 0.25), (1.7e15, 1.0), (0.0, 1e-9)])
def test_large_and_tiny_numbers_keep_their_digits(offset, step, tmp_path):
    """Labels of 2 ** 24 and more differ by less than float32 can say; a loss must not depend on where zero is."""
    numbers = [offset + step * k for k in range(20)]
    lines = [json.dumps({"text": f"number {k}", "label": value}) for k, value in enumerate(numbers)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    data = Manifest(path=tmp_path / "list.jsonl", target="number").read(16)
    texts = [text for part in data.parts().values() for text in part.texts]
    assert sorted(text.target for text in texts) == numbers
    batch = collate([data.train[k] for k in range(len(data.train))])
    assert batch.targets.tolist() == [text.target for text in data.train.texts]
    mean, std = standardised([text.target for text in data.train.texts])
    objective = Regression(mean=mean, std=std)
    wanted = (np.array(batch.targets.tolist()) - mean) / std
    loss = objective.loss(Says(torch.zeros(len(wanted), 1)), batch).item()
    assert loss == pytest.approx((wanted**2).sum(), rel=1e-5)
    perfect = Says(torch.tensor(wanted, dtype=torch.float32)[:, None])
    metrics = objective.metrics(objective.evaluate(perfect, batch))
    assert metrics["r2"] == pytest.approx(1.0) and metrics["mae"] < 1e-6 * step * 20


def test_equal_numbers_are_refused_and_not_divided_by_rounding_errors(tmp_path):
    (tmp_path / "list.csv").write_text("text,label\n" + "".join(f"text {k},0.1\n" for k in range(4)))
    data = Manifest(path=tmp_path / "list.csv", target="number").read(16)
    with pytest.raises(UserError, match=r"All labels to learn from are 0\.1"):
        standardised([text.target for text in data.train.texts])
    assert standardised([0.3, 0.1 + 0.2])[1] == 1.0


def test_the_test_set_is_read_in_order_of_length(listed):
    data = Manifest(path=listed).read(32)
    assert data.test.token_counts == sorted(data.test.token_counts)
    ids, target = data.test[0]
    words = TOKENIZER  # of other texts: it must not be used here
    assert data.tokenizer.size != words.size
    assert data.tokenizer.backend.decode(ids.tolist()) == data.test.texts[0].text
    assert data.labels[target] == ("fruit" if "apple" in data.test.texts[0].text else data.labels[target])


@pytest.mark.parametrize("target", ["classes", "tokens"])
def test_texts_between_more_tokens_of_a_frame(target, tmp_path):
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "[LANG]", "one", "two"]
    ids = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([name for name in ids if name[0] == "["])
    frame = "[CLS] [LANG] $A [SEP]"
    ends = [(name, ids[name]) for name in ("[CLS]", "[LANG]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=ends)
    backend.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "list.csv"
    path.write_text("text,label\n" + "".join(f"{'one two ' * n},{n % 2}\n" for n in range(1, 9)))
    options = {"target": target, "tokenizer": TokenizerConfig(path=tmp_path / "tokenizer.json")}
    listed = Manifest(path=path, **options)
    context = pytest.warns(UserWarning, match="have more than 8 tokens") if target == "classes" else nullcontext()
    with context:
        data = listed.read(8)
    for index in range(len(data.train)):
        inputs, targets = data.train[index]
        assert inputs[:2].tolist() == [1, 5] and inputs[-1] == 2 and len(inputs) <= 8
        if target == "tokens":
            assert (targets[[0, 1, -1]] == IGNORE).all() and (targets != IGNORE).any()
    with pytest.raises(UserError, match="A model of 3 tokens has no room for text: 3 of them are special tokens"):
        listed.read(3)
