"""An image tower and a text tower with a joint space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import Contrastive, HubModel, Similarity, UserError, from_dict
from core.attention.packing import Packing
from core.config import configclass
from core.objectives.contrastive import SigmoidContrastive
from text.model import TextConfig, TextEncoder
from text.rows import Texts
from vision.model import Images, ViT, ViTConfig


@configclass
class TwoTowersConfig:
    image: ViTConfig = field(default_factory=ViTConfig)
    """Its `classes` are the features of the joint space; with 0, the pooled vector is in the joint space."""
    text: TextConfig = field(default_factory=TextConfig)
    """As for images, with the head "none" in place of 0 classes."""
    sigmoid: bool = False
    """Whether an image and a text match is a question for each pair (SigLIP), not a choice among texts (CLIP)."""


class TwoTowers(nn.Module, HubModel, library_name="trivium", tags=["image-text", "contrastive"]):
    """Images and texts to vectors in one space, as `Contrastive` or `SigmoidContrastive` train them."""

    own_entry = "sigmoid"

    def __init__(self, config: TwoTowersConfig | Mapping[str, Any]):
        super().__init__()
        config = from_dict(TwoTowersConfig, config)
        self.sigmoid = config.sigmoid
        widths = [_width(config.image, config.image.classes), _width(config.text, _outputs(config.text))]
        if widths[0] != widths[1]:
            raise UserError(f"The towers end in spaces of {widths[0]} and {widths[1]} features: make them equal.")
        self.width = widths[0]  # of the joint space
        self.image, self.text = ViT(config.image), TextEncoder(config.text)
        self.similarity = Similarity(scale=10.0, bias=-10.0, largest=math.inf) if config.sigmoid else Similarity()

    @property
    def config(self) -> TwoTowersConfig:
        return TwoTowersConfig(image=self.image.config, text=self.text.config, sigmoid=self.sigmoid)

    @property
    def objective(self) -> Contrastive:
        return SigmoidContrastive() if self.sigmoid else Contrastive()

    def of_images(self, images: Images) -> Float[Tensor, "images e"]:
        """A vector of each image: the product with that of a text is their logit (see `Similarity`)."""
        return self.similarity(self.image(images))

    def of_texts(
        self, ids: Int[Tensor, "b n"] | Texts, mask: Bool[Tensor, "b n"] | Packing | None = None
    ) -> Float[Tensor, "texts e"]:
        return self.similarity(self.text(ids, mask))

    def forward(
        self,
        images: Float[Tensor, "images c h w"] | Sequence[Float[Tensor, "c _h _w"]],
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
    ) -> tuple[Float[Tensor, "images e"], Float[Tensor, "texts e"]]:
        return self.of_images(images), self.of_texts(ids, mask)

    def logits(self, images: Float[Tensor, "n e"], texts: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
        """Of each image with each text, from their vectors."""
        return self.objective.logits(images, texts)

    def probabilities(self, logits: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """That an image is described by each text, of these texts (CLIP) or by itself (SigLIP)."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)


def _outputs(config: TextConfig) -> int:
    if config.head == "tokens":
        raise UserError("A text tower has a head for classes, which project into the joint space, or none.")
    return config.classes if config.head == "classes" else 0


def _width(config: Any, outputs: int) -> int:
    return outputs or config.encoder.dim
