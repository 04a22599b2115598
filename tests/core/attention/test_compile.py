"""torch.compile keeps one graph, torch.export a dynamic batch; both give the eager result.

In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold.
"""

from processes import run_script

SCRIPT = """
import torch
from core import Encoder, EncoderConfig, Tokens

torch.manual_seed(0)
config = EncoderConfig(dim=32, depth=2, heads=4, rotary="2d", activation=("gelu", "swiglu"), layer_scale=0.1)
model = Encoder(config).eval()
x, mask = torch.randn(3, 13, 32), torch.rand(3, 13) > 0.3
for backend, given in (
    ("aot_eager", Tokens(x, grid=(3, 4), prefix=1)),  # the same graph without machine code, which takes long to make
    ("inductor", Tokens(x, mask=mask, grid=(3, 4), prefix=1)),
):
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        out = run(given).x
        out.square().sum().backward()
        found.append((out, [p.grad.clone() for p in model.parameters()]))
    (expected, gradients), (out, others) = found
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, others):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    batch = {0: torch.export.Dim("batch", max=64)}
    shapes = ((batch, None if given.mask is None else batch),)
    exported = torch.export.export(model, (given,), dynamic_shapes=shapes).module()
    other = Tokens(torch.randn(5, 13, 32), None if given.mask is None else mask[[0, 1, 2, 0, 1]], (3, 4), 1)
    torch.testing.assert_close(exported(other).x, model(other).x, rtol=1e-5, atol=1e-5)
"""


def test_compile_and_export_equal_eager(tmp_path):
    run_script(SCRIPT, tmp_path)
