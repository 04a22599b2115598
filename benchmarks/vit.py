"""ViT-S/16 at 224 px, batch 8, against timm's: `python -m benchmarks.vit`. Two minutes on 2 cores."""

import timm
import torch

from core.training.processes import has_fast_bf16
from vision import from_timm

from .timing import inference, interleave, matmul_peak, train_step

BATCH = 8


def main() -> None:
    torch.manual_seed(0)
    peer = timm.create_model("vit_small_patch16_224")
    ours = from_timm(peer)
    images, targets = torch.randn(BATCH, 3, 224, 224), torch.randint(0, 1000, (BATCH,))

    peer.eval(), ours.eval()
    forward = interleave({"ours": inference(ours, images), "timm": inference(peer, images)}, rounds=31)
    peer.train(), ours.train()
    precisions = ["fp32", "bf16"] if has_fast_bf16("cpu") else ["fp32"]
    work = {}
    for precision in precisions:
        work[f"ours {precision}"] = train_step(ours, images, targets, precision)
        work[f"timm {precision}"] = train_step(peer, images, targets, precision)
    training = interleave(work, rounds=15)

    # Multiply-adds * 2 of the matrix products: 12 blocks of 12 dim^2 a token and 2 dim a pair, patches, head.
    tokens, dim = 197, 384
    block = 2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim
    work_forward = BATCH * (12 * block + 2 * 196 * 768 * dim + 2 * dim * 1000)
    peak = matmul_peak()
    print(f"ViT-S/16, 224 px, batch {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"fp32 matrix products peak at {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'':<18}{'ours ms':>9}{'timm ms':>9}{'ratio':>8}{'quartiles':>16}{'of the limit':>14}")
    rows = [("inference fp32", forward["ours"], forward["timm"], 1)]
    rows += [(f"step {p}", training[f"ours {p}"], training[f"timm {p}"], 3) for p in precisions]
    for name, mine, theirs, passes in rows:
        middle, low, high = mine.ratio(theirs)
        share = f"{passes * work_forward / peak / mine.median:.0%}" if name.endswith("fp32") else ""
        quartiles = f"{low:.3f} - {high:.3f}"
        print(f"{name:<18}{mine.median * 1e3:>9.1f}{theirs.median * 1e3:>9.1f}{middle:>8.3f}{quartiles:>16}{share:>14}")
    if "bf16" in precisions:
        middle, low, high = training["ours bf16"].ratio(training["ours fp32"])
        print(f"\nour bf16 step is {middle:.2f} times as fast as our fp32 step ({low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
