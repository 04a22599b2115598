"""AST-S at 1,024 frames of 128 mel bins against transformers' AST with SDPA: `python -m benchmarks.ast`. From features
on, so that only the models differ. A few minutes on 2 cores."""

import torch
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification

from audio import from_hf
from core.training.processes import has_fast_bf16

from .timing import inference, interleave, matmul_peak, train_step

BATCH, TOKENS, DIM = 2, 12 * 101 + 2, 384


class FromFeatures(nn.Module):
    """Our AST from normalised features "b frames mel" on, as transformers' takes them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features):
        model = self.model
        return model.head(model.pooled(model.encoder(model.embed(features.mT))))


class Peer(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features):
        return self.model(features).logits


def main() -> None:
    torch.manual_seed(0)
    config = ASTConfig(hidden_size=DIM, num_attention_heads=6, intermediate_size=4 * DIM, num_labels=527)
    config._attn_implementation = "sdpa"
    stock = ASTForAudioClassification(config)
    ours, peer = FromFeatures(from_hf(stock)), Peer(stock)
    features, targets = torch.randn(BATCH, 1024, 128), torch.randint(0, 527, (BATCH,))

    peer.eval(), ours.eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(features), peer(features), rtol=1e-3, atol=1e-4)
    forward = interleave({"ours": inference(ours, features), "peer": inference(peer, features)}, rounds=11)
    peer.train(), ours.train()
    precisions = ["fp32", "bf16"] if has_fast_bf16("cpu") else ["fp32"]
    work = {}
    for precision in precisions:
        work[f"ours {precision}"] = train_step(ours, features, targets, precision)
        work[f"peer {precision}"] = train_step(peer, features, targets, precision)
    training = interleave(work, rounds=7)

    # Multiply-adds * 2 of the matrix products: 12 blocks of 12 dim^2 a token and 2 dim a pair, patches, head.
    block = 2 * TOKENS * 12 * DIM**2 + 4 * TOKENS**2 * DIM
    work_forward = BATCH * (12 * block + 2 * TOKENS * 256 * DIM + 2 * DIM * 527)
    peak = matmul_peak()
    print(f"AST-S, 1024 frames, batch {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"fp32 matrix products peak at {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'':<18}{'ours ms':>9}{'peer ms':>9}{'ratio':>8}{'quartiles':>16}{'of the limit':>14}")
    rows = [("inference fp32", forward["ours"], forward["peer"], 1)]
    rows += [(f"step {p}", training[f"ours {p}"], training[f"peer {p}"], 3) for p in precisions]
    for name, mine, theirs, passes in rows:
        middle, low, high = mine.ratio(theirs)
        share = f"{passes * work_forward / peak / mine.median:.0%}" if name.endswith("fp32") else ""
        quartiles = f"{low:.3f} - {high:.3f}"
        print(f"{name:<18}{mine.median * 1e3:>9.1f}{theirs.median * 1e3:>9.1f}{middle:>8.3f}{quartiles:>16}{share:>14}")


if __name__ == "__main__":
    main()
