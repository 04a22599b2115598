"""Masked latent prediction: a student that sees a part of a sample predicts what its teacher, the running average of
its weights, makes of the whole. data2vec 2.0 (Baevski et al. 2022), EAT on spectrograms (Chen et al. 2024).

The teacher sees each sample once; the student sees it through several masks, each time only what is left, packed in one
row without padding. So a step costs little more than a supervised one, for samples of any sizes and kinds.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.packing import Packing
from ..attention.recording import as_teacher
from ..config import BelowOne, Layers, Natural, NotNegative, SettingError, Size, UpToOne, configclass
from ..encoder.config import EncoderConfig
from ..encoder.encoder import Encoder
from ..encoder.init import init_weights
from ..encoder.pack import pack
from ..encoder.pooling import pool
from ..encoder.tokens import Tokens
from ..errors import UserError
from .features import note_features
from .mask_decoder import (
    MaskDecoder,
    body_index,
    body_packing,
    freeze_output,
    repeated,
    require_separate_patches,
    take_visible,
)
from .objective import at_least_fp32
from .patch_masking import count_masked, mask_packed_patches


@configclass
class LatentConfig:
    ratio: BelowOne = 0.8
    """Ratio of tokens that are masked."""
    block: tuple[Natural, Natural] = (3, 3)
    """Size of the blocks of tokens that are masked together, (rows, columns); 0 for all there are. A sequence is a
    column: 4 1 masks spans of four tokens."""
    masks: Size = 4
    """Masks of each sample in a step; the teacher sees the sample once for all of them."""
    layers: Layers = 8
    """The teacher's last layers whose mean is predicted; all if it has fewer."""
    target_norm: Literal["sample", "token", "none"] = "sample"
    """How the output of each of these layers is normalised: each feature over the tokens of a sample (data2vec 2.0), or
    the features of each token. With token, what is the same in all tokens stays in the target, and is easy to predict;
    with none, everything may become the same."""
    summary: NotNegative = 1.0
    """Weight of predicting the teacher's mean over all tokens from the class token, or from the mean of what the
    student sees; 0 for none. 1 is for sounds (EAT); data2vec 2.0 has 0.01 for images, and none for texts."""
    ema: UpToOne = 0.998
    """Share of the teacher that each step keeps, at the beginning; the rest is the student."""
    ema_end: UpToOne = 0.9998
    """The same at the end of training; in between it rises linearly."""
    dim: Size | None = None
    """Width of the decoder; about half the encoder's if None."""
    depth: Layers = 1
    """Layers of the decoder."""
    heads: Size | None = None
    """Attention heads of the decoder; as many as the encoder has if None."""

    def __post_init__(self):
        if not self.ratio:
            raise SettingError(LatentConfig, "ratio", "must be more than 0: only masked tokens are predicted")

    def decoder(self, encoder: EncoderConfig) -> EncoderConfig:
        """The shape of the decoder behind an encoder."""
        heads = self.heads or encoder.heads
        unit = math.lcm(heads, 4)  # positions have sines and cosines of rows and of columns
        dim = self.dim or max(encoder.dim // 2 // unit, 1) * unit
        if dim % unit:
            raise SettingError(LatentConfig, "dim", f"must be a multiple of {unit} with {heads} heads, not {dim}")
        return EncoderConfig(dim=dim, depth=self.depth, heads=heads, norm_eps=encoder.norm_eps)


@runtime_checkable
class TokenModel(Protocol):
    """What a model needs so that it can be pre-trained by masked latent prediction."""

    @property
    def encoder(self) -> Encoder: ...

    def tokens(self, *inputs: Any, **options: Any) -> Tokens: ...


class LatentErrors(NamedTuple):
    """Mean squared errors of each sample: of the masked tokens, and of the summary."""

    tokens: Float[Tensor, "s"]
    summary: Float[Tensor, "s"]


class Targets(NamedTuple):
    """Of all tokens of a row, and of each of its samples."""

    tokens: Float[Tensor, "n d"]
    summary: Float[Tensor, "s d"]


class LatentPrediction(nn.Module):
    """A model, a light decoder, and the teacher; `model` is what is kept after pre-training.

    `follow` begins the teacher, once it is known which parameters are trained, and `update` moves it after each step.
    It consists of running averages of the parameters that are trained, and shares all others with the student.
    """

    def __init__(self, model: TokenModel, config: LatentConfig, steps: int, spared: int = 0):
        """steps: of the whole training, over which `ema` rises to `ema_end`. spared: how many tokens of each sample are
        never masked, whose noise is infinite."""
        super().__init__()
        require_separate_patches(model)
        encoder = model.encoder.config
        self.model, self.config, self.steps, self.spared = model, config, steps, spared
        self.layers = range(max(encoder.depth - config.layers, 0), encoder.depth)
        narrow = config.decoder(encoder)
        self.decoder = MaskDecoder(encoder.dim, narrow)
        self.head = nn.Linear(narrow.dim, encoder.dim)
        self.summary_head = nn.Linear(encoder.dim, encoder.dim) if config.summary else None
        self.teacher = nn.Module()  # its averages, as buffers
        self.following = False
        for part in (self.head, self.summary_head):
            if part is not None:
                init_weights(part)

    # --- The teacher --------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Begin the teacher as a copy of the student, and freeze what neither of them uses."""
        freeze_output(self.model)
        self.following = True
        for name, parameter in self.model.named_parameters():  # pyright: ignore[reportAttributeAccessIssue]
            if parameter.requires_grad:
                self.teacher.register_buffer(name.replace(".", "/"), parameter.detach().clone())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the teacher towards the student; step: how many have been done."""
        start, end = self.config.ema, self.config.ema_end
        kept = start + (end - start) * min(step / max(self.steps, 1), 1.0)
        own = dict(self.model.named_parameters())  # pyright: ignore[reportAttributeAccessIssue]
        for name, average in self.teacher.named_buffers():
            average.lerp_(own[name.replace("/", ".")], 1 - kept)

    @torch.no_grad()
    def targets(self, inputs: Sequence[Any]) -> Targets:
        """What the teacher makes of whole samples, packed in a row: the mean of its last layers."""
        run = _Layers(self.model, self.layers)
        averages = {f"model.{name.replace('/', '.')}": t for name, t in self.teacher.named_buffers()}
        training = run.training
        run.eval()
        try:
            with as_teacher():
                layers: list[Tokens] = torch.func.functional_call(run, averages, (tuple(inputs),))
        finally:
            run.train(training)
        packing = layers[0].packing
        assert packing is not None
        body, sequence = body_index(packing, layers[0].x.device), layers[0].places.sequence
        mean = torch.stack([self._normalised(layer.x[0], packing, body, sequence) for layer in layers]).mean(dim=0)
        by_token = torch.stack([_normed(at_least_fp32(layer.x[0])) for layer in layers]).mean(dim=0)
        summary = mean_of_each(by_token[body], sequence[body], len(packing))
        return Targets(mean if self.config.target_norm == "none" else _normed(mean), _normed(summary))

    def _normalised(
        self, x: Float[Tensor, "n d"], packing: Packing, body: Int[Tensor, "body"], sequence: Int[Tensor, "n"]
    ) -> Float[Tensor, "n d"]:
        x = at_least_fp32(x)
        if self.config.target_norm == "none":
            return x
        if self.config.target_norm == "token":
            return _normed(x)
        mean = mean_of_each(x[body], sequence[body], len(packing))
        x = x - mean[sequence]
        variance = mean_of_each(x[body].square(), sequence[body], len(packing))
        return x * (variance + 1e-5).rsqrt()[sequence]

    # --- The student --------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any) -> LatentErrors:
        """inputs: the model's, and last the noise "b masks rows columns" (see `WithMaskNoise`): the tokens with the
        least noise are masked."""
        *model_inputs, noise = inputs
        if not self.following:
            raise UserError("LatentPrediction: there is no teacher yet; call follow() before training.")
        targets = self.targets(model_inputs)
        tokens = pack(self.model.tokens(*model_inputs))
        assert tokens.packing is not None
        samples, masks = len(tokens.packing), noise.shape[1]
        whole, source = repeated(tokens.packing, masks)
        counts = count_masked(body_packing(whole).lengths, self.config.ratio, self.spared)
        masked = mask_packed_patches(noise.flatten(0, 1), body_packing(whole), counts)
        encoded = self.model.encoder(take_visible(tokens, masked, counts, whole, source))
        ordered = masked.int().argsort(descending=True, stable=True)
        at = body_index(whole, masked.device)[ordered[: int(counts.sum())]]
        predicted = at_least_fp32(self.head(self.decoder(encoded).x[0, at]))
        expected = targets.tokens[source.to(at.device, non_blocking=True)[at]]
        errors = F.mse_loss(predicted, expected, reduction="none").mean(dim=1)
        sequence = whole.tokens_on(at.device).sequence[at]
        of_tokens = mean_of_each(errors[:, None], sequence, len(whole)).view(samples, masks).mean(dim=1)
        seen = pool(encoded, "mean")
        note_features(targets.summary)
        of_summary = of_tokens.new_zeros(samples)
        if self.summary_head is not None:
            guess = at_least_fp32(self.summary_head(pool(encoded, "cls") if has_class(self.model, tokens) else seen))
            errors = guess.unflatten(0, (samples, masks)) - targets.summary[:, None]
            of_summary = errors.square().mean(dim=(1, 2))
        return LatentErrors(of_tokens, of_summary)


class _Layers(nn.Module):
    """A model as a function from its inputs to the tokens after some of its layers, in a packed row."""

    def __init__(self, model: Any, layers: Sequence[int]):
        super().__init__()
        self.model, self.layers = model, layers
        self.training = model.training

    def forward(self, inputs: Sequence[Any]) -> list[Tokens]:
        return self.model.encoder.intermediate(pack(self.model.tokens(*inputs)), self.layers)


def has_class(model: TokenModel, tokens: Tokens) -> bool:
    """Whether the samples of a packed row begin with a class token, rather than with registers alone."""
    if not getattr(getattr(model, "config", None), "class_token", True):
        return False
    return tokens.packing is not None and bool((tokens.packing.prefixes > 0).all()) and len(tokens.packing) > 0


def _normed(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return F.layer_norm(x, x.shape[-1:])


def mean_of_each(values: Float[Tensor, "k d"], sequence: Int[Tensor, "k"], count: int) -> Float[Tensor, "s d"]:
    """The mean of the values of each sequence; 0 where there are none. sequence: whose each value is."""
    sums = values.new_zeros(count, values.shape[1]).index_add(0, sequence, values)
    counts = values.new_zeros(count).index_add(0, sequence, values.new_ones(len(sequence)))
    return sums / counts.clamp(min=1)[:, None]
