"""The Vision Transformer (Dosovitskiy et al. 2021), also DeiT, DINO, and the towers of CLIP and SigLIP."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Float
from pydantic import Strict
from torch import Tensor, nn

from core import (
    AttentionPool,
    Encoder,
    EncoderConfig,
    HubModel,
    PatchEmbedding,
    Pool,
    PositionResize,
    Tokens,
    UserError,
    from_dict,
    init_weights,
    make_norm,
    pair,
    pool,
    pooled_width,
)
from core.config import BelowOne, Count, Natural, Real, SettingError, Size, configclass
from core.models.targets import Predicts, TargetConfig
from core.models.views import ONE_VIEW

Spread = Annotated[float, Strict(), Interval(ge=1e-6, le=1e9)]  # dividing by less could give infinite pixels
Images = Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "c _h _w"]]
Crop = Annotated[float, Strict(), Interval(ge=0.01, le=4)]


@configclass
class Preprocess:
    """How images are prepared for a model; saved with it."""

    mean: tuple[Real, ...] = (0.5,)
    """Subtracted from each channel, on a scale of 0 to 1; one number is for all channels."""
    std: tuple[Spread, ...] = (0.5,)
    """Each channel is divided by it; one number is for all channels."""
    crop: Crop = 1.0
    """Fraction of the resized image's side that the central crop keeps in evaluation; above 1 a border is added."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """How an image is resized, as in timm. center: by its shorter side, and cropped; squash: both sides; border: by its
    longer side, and a border is added. None: center if the image size is square, squash if not."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"] = "bicubic"
    """Used for resizing; random: bilinear or bicubic in training, bilinear in evaluation."""


@configclass
class ImageFormat:
    """The images that a model takes."""

    size: Size | tuple[Size, Size]
    """Pixels; (rows, columns) if not square."""
    channels: Size
    preprocess: Preprocess
    patch_size: Size | tuple[Size, Size] = 1
    stride: Size | tuple[Size, Size] | None = None
    prefix: Natural = 0
    """Number of class and register tokens."""
    max_tokens: Count | None = None
    """Most tokens of an image of native size, those of the prefix included; None: all images have the model's size."""

    @property
    def steps(self) -> tuple[int, int]:
        """Pixels from patch to patch, down and across."""
        return pair(self.patch_size if self.stride is None else self.stride)


@configclass
class ViTConfig(TargetConfig):
    image_size: Size | tuple[Size, Size] = 224
    """Pixels; (rows, columns) if not square."""
    patch_size: Size | tuple[Size, Size] = 16
    """Pixels; (rows, columns) if not square."""
    stride: Size | tuple[Size, Size] | None = None
    """Pixels from patch to patch; less than the patch size makes patches overlap."""
    max_tokens: Count | None = None
    """Images keep their own size and aspect ratio, and have at most so many tokens, class and register tokens included;
    None: all are resized to the image size. (--data.size native sets it.)"""
    channels: Size = 3
    """Channels of the image: 3 for colour, 1 for grey."""
    classes: Natural = 1000
    """Number of classes; 0 for no head (the model returns features), 1 to predict a number."""
    class_token: bool = True
    """A learned token that can be pooled."""
    registers: Natural = 0
    """Number of learned tokens that are not pooled (Darcet et al. 2024)."""
    positions: Literal["learned", "factorised", "sincos", "none"] = "learned"
    """Positions added to the patches; factorised: learned for rows and for columns, and summed."""
    position_grid: tuple[Size, Size] | None = None
    """Rows and columns of patches that positions are learned for; those of the image size if None."""
    position_resize: PositionResize = field(default_factory=PositionResize)
    """How learned positions are interpolated for other grids."""
    prefix_positions: bool = True
    """Whether class and register tokens have learned positions too."""
    patch_bias: bool = True
    """Bias of the patch projection."""
    stem: tuple[Size, ...] = ()
    """Widths of convolutions of 3 x 3 pixels before the projection (Xiao et al. 2021); the first one, and each that is
    wider than the one before it, halves the image. None by default."""
    stem_norm: Literal["batch", "layer"] = "layer"
    """Norm after each of these convolutions: of a layer, or of the batch, which learns faster and makes an image depend
    on the others of its batch in training."""
    patch_norm: bool = False
    """A norm of the projected patches, before positions are added (AIMv2)."""
    pool: Pool = "cls"
    """How tokens become one vector; cls_mean: the class token and the mean of the patches, side by side (DINOv2);
    each_prefix: class and register tokens, side by side (a distilled DeiT)."""
    pool_prefix: bool = True
    """Whether pooling by attention attends to class and register tokens, too."""
    pool_heads: Size | None = None
    """Heads of pooling by attention; those of the encoder if None."""
    pool_mlp_dim: Size | None = None
    """Hidden width of the MLP of pooling by attention; that of the encoder if None."""
    head_norm: bool = False
    """A norm after pooling."""
    dropout: BelowOne = 0.0
    """Dropout of the embedded tokens."""
    head_dropout: BelowOne = 0.0
    """Dropout of the pooled vector."""
    flip_average: bool = False
    """In evaluation and prediction, logits are the mean of those of an image and of its mirror image (test-time
    augmentation), which takes twice the time."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    preprocess: Preprocess = field(default_factory=Preprocess)

    def __post_init__(self):
        """Checks; and without colours, mean and std become one number each, as in timm."""
        if self.max_tokens is not None and self.max_tokens <= self.prefix:
            problem = f"must be at least {self.prefix + 1}, so that there is a patch, not {self.max_tokens}"
            raise SettingError(ViTConfig, "max_tokens", problem)
        averaged = {}
        for name in ("mean", "std"):
            values = getattr(self.preprocess, name)
            if len(values) not in (1, 3, self.channels):
                problem = f"must have one number, or one for each of the {self.channels} channels, not {len(values)}"
                raise SettingError(ViTConfig, f"preprocess.{name}", problem)
            if len(values) not in (1, self.channels):
                averaged[name] = (sum(values) / len(values),)
        if averaged:
            object.__setattr__(self, "preprocess", replace(self.preprocess, **averaged))

    @property
    def image_format(self) -> ImageFormat:
        return ImageFormat(
            size=self.image_size,
            channels=self.channels,
            preprocess=self.preprocess,
            patch_size=self.patch_size,
            stride=self.stride,
            prefix=self.prefix,
            max_tokens=self.max_tokens,
        )

    @property
    def prefix(self) -> int:
        """Number of class and register tokens."""
        return int(self.class_token) + self.registers


class ViT(nn.Module, Predicts, HubModel, library_name="trivium", tags=["vision-transformer"]):
    """Images to logits "b classes". The images are a batch "b c h w", or a list of images "c h w" of any sizes; their
    patches then lie in one row, without padding."""

    def __init__(self, config: ViTConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(ViTConfig, config)
        if config.pool in ("cls", "cls_mean", "each_prefix") and not config.class_token:
            raise UserError(
                f"pool={config.pool!r} needs class_token=True; choose pool='mean', 'max' or 'attention' without one."
            )
        dim = config.encoder.dim
        self.embed = PatchEmbedding(
            dim,
            image_size=config.image_size,
            patch_size=config.patch_size,
            stride=config.stride,
            channels=config.channels,
            class_token=config.class_token,
            registers=config.registers,
            positions=config.positions,
            prefix_positions=config.prefix_positions,
            position_grid=config.position_grid,
            position_resize=config.position_resize,
            bias=config.patch_bias,
            stem=config.stem,
            stem_norm=config.stem_norm,
            norm=partial(make_norm, config.encoder) if config.patch_norm else None,
            dropout=config.dropout,
        )
        self.encoder = Encoder(config.encoder)
        self.attention_pool = None
        if config.pool == "attention":
            self.attention_pool = AttentionPool(
                config.encoder, config.pool_prefix, config.pool_heads, config.pool_mlp_dim
            )
        width = pooled_width(config.pool, dim, config.prefix)
        self.head_norm = make_norm(config.encoder, width) if config.head_norm else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(width, config.classes) if config.classes else nn.Identity()
        init_weights(self.head)

    def tokens(self, images: Images) -> Tokens:
        return self.embed(images)

    def encode(self, images: Images) -> Tokens:
        return self.encoder(self.tokens(images))

    def intermediate(self, images: Images, layers: Sequence[int], *, norm: bool = False) -> list[Tokens]:
        """The tokens after some layers (see `Encoder.intermediate`); `maps` of each are its patches as an image."""
        return self.encoder.intermediate(self.tokens(images), layers, norm=norm)

    def patches(self, images: Images) -> Float[Tensor, "b n p"]:
        """The pixels of each patch; of a list of images, the patches of all of them in one row."""
        if not isinstance(images, Tensor):
            return self.embed.cut(images)[1][None]
        return F.unfold(images, self.embed.patch_size, stride=self.embed.stride).mT

    def features(self, images: Images) -> Float[Tensor, "b p"]:
        """One vector per image: the input of the head."""
        encoded = self.encode(images)
        pooled = self.attention_pool(encoded) if self.attention_pool else pool(encoded, self.config.pool)
        return self.head_norm(pooled)

    def forward(self, images: Images) -> Float[Tensor, "b classes"]:
        logits = self.head(self.head_dropout(self.features(images)))
        if self.training or not self.config.flip_average or ONE_VIEW.get() is self:
            return logits
        mirrored = images.flip(-1) if isinstance(images, Tensor) else [image.flip(-1) for image in images]
        return (logits + self.head(self.features(mirrored))) / 2
