"""torch.compile makes one graph of an encoder for packed rows of any lengths, and it gives the eager result.

In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold.
"""

from processes import run_script

SCRIPT = """
import torch
from torch._dynamo.utils import counters
from core import Encoder, EncoderConfig, Tokens
from core.sparse import Local, Global, Window2d
from core.encoder.pack import pack


def row(sizes, on_grid):
    parts = [Tokens(torch.randn(1, 1 + a * b, 32), grid=(a, b) if on_grid else None, prefix=1) for a, b in sizes]
    tokens = pack(parts)
    torch._dynamo.mark_dynamic(tokens.x, 1)
    torch._dynamo.mark_dynamic(tokens.packing.places, 0)
    return tokens

ROWS = ([(3, 4), (1, 1), (5, 20)], [(2, 9), (6, 6), (1, 3), (8, 2), (1, 1)], [(30, 4), (2, 2)])
CONFIGS = (
    EncoderConfig(dim=32, depth=2, heads=2, rotary="1d", patterns=(Local(16), Local(64) | Global(1))),
    EncoderConfig(dim=32, depth=2, heads=2, rotary="2d", rotary_unit=True, patterns=Window2d(2)),
    EncoderConfig(dim=32, depth=2, heads=2),
)
for config in CONFIGS:
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()
    model = Encoder(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for sizes in ROWS:
        tokens, results = row(sizes, config.rotary == "2d"), []
        for run in (model, compiled):
            model.zero_grad()
            out = run(tokens).x
            (out * torch.linspace(-1, 1, 32)).square().sum().backward()
            results.append([out, *(p.grad.clone() for p in model.parameters())])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1, config
"""


def test_one_graph_serves_rows_of_any_lengths(tmp_path):
    run_script(SCRIPT, tmp_path)
