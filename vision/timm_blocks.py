"""timm's kinds of blocks in one form."""

from types import SimpleNamespace
from typing import Any, Literal

from jaxtyping import Shaped
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import Tensor

from core import Move, UserError
from core.checkpoints.keys import KeyMap

ATTENTION = ("Attention", "EvaAttention", "AttentionRope", "ParallelScalingBlock")
NORM_ORDER: dict[type, Literal["pre", "res_post"]] = {
    TimmBlock: "pre",
    EvaBlock: "pre",
    BeitBlock: "pre",
    ParallelScalingBlock: "pre",
    ResPostBlock: "res_post",
    EvaBlockPostNorm: "res_post",
}


def check(supported: bool, what: str) -> None:
    if not supported:
        raise UserError(f"from_timm does not support {what}.")


class Parts(SimpleNamespace):
    """Parts of a block under the names of timm's plain one."""


def usual(block: Any) -> Any:
    """A block whose attention and MLP are modules; those of a parallel block share their first projection."""
    if not isinstance(block, ParallelScalingBlock):
        return block
    whole: Any = block
    check(whole.attn_out_proj is not None, "attention and MLP that share an output projection")
    attention: Any = type("ParallelScalingBlock", (Parts,), {})(
        num_heads=whole.num_heads, qkv=whole.in_proj, proj=whole.attn_out_proj, q_norm=whole.q_norm
    )
    mlp: Any = type("Mlp", (Parts,), {})(act=whole.mlp_act, fc2=whole.mlp_out_proj)
    return Parts(attn=attention, mlp=mlp, norm1=whole.in_norm, ls1=whole.ls)


def parallel_keys(dim: int) -> KeyMap:
    """The weights of parallel blocks of this width under our keys; the MLP's part of the first projection is first."""

    def of_mlp(table: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return table[: -3 * dim]

    def of_attention(table: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return table[-3 * dim :]

    block = "encoder.blocks.{i}"
    return {
        "blocks.{i}.in_norm.{p}": f"{block}.attention_norm.{{p}}",
        "blocks.{i}.in_proj.{p}": Move(f"{block}.mlp.up.{{p}}", of_mlp),
        ("blocks.{i}.in_proj.{p}",): Move(f"{block}.attention.qkv.{{p}}", of_attention),
        "blocks.{i}.mlp_bias": f"{block}.mlp.up.bias",
        "blocks.{i}.q_norm.{p}": f"{block}.attention.q_norm.{{p}}",
        "blocks.{i}.k_norm.{p}": f"{block}.attention.k_norm.{{p}}",
        "blocks.{i}.attn_out_proj.{p}": f"{block}.attention.out.{{p}}",
        "blocks.{i}.mlp_out_proj.{p}": f"{block}.mlp.down.{{p}}",
        "blocks.{i}.ls.gamma": f"{block}.attention_branch.scale",
        ("blocks.{i}.ls.gamma",): f"{block}.mlp_branch.scale",
    }
