"""A compiled audio model trains on batches of different lengths, and gives the eager gradients.

In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold.
"""

from processes import run_script

SCRIPT = """
import copy
import torch
from audio.model import AST, ASTConfig
from audio.waveform import WaveformConfig, WaveformModel
from core import EncoderConfig

encoder = EncoderConfig(dim=16, depth=1, heads=2)
convolutions = dict(conv_dims=(8, 8), conv_kernels=(20, 4), conv_strides=(10, 4), position_groups=4)
for eager in (
    AST(ASTConfig(classes=3, sample_rate=8000, n_mels=16, patch_size=8, stride=8, encoder=encoder)),
    WaveformModel(WaveformConfig(classes=3, **convolutions, encoder=encoder)),
):
    compiled = copy.deepcopy(eager)
    compiled.compile()
    for samples in (6000, 5200, 4400):  # the second batch has a graph for all lengths made
        clips, lengths = torch.randn(2, samples), torch.tensor([samples, samples - 900])
        for model in (eager, compiled):
            model.zero_grad()
            model(clips, lengths).square().sum().backward()
        for (name, ours), wanted in zip(compiled.named_parameters(), eager.parameters(), strict=True):
            assert (ours.grad is None) == (wanted.grad is None), name
            if wanted.grad is not None:
                torch.testing.assert_close(ours.grad, wanted.grad, msg=lambda text: f"{name}: {text}")
"""


def test_lengths_that_vary_compile(tmp_path):
    run_script(SCRIPT, tmp_path)
