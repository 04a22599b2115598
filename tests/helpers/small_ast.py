"""The config of a small AST, for tests of audio."""

from audio import ASTConfig, FeatureConfig
from core import EncoderConfig

TINY = ASTConfig(
    sample_rate=8_000,
    n_mels=20,
    max_frames=60,
    patch_size=(8, 6),
    stride=(5, 4),
    classes=5,
    encoder=EncoderConfig(dim=32, depth=2, heads=2),
)
KALDI = FeatureConfig(kind="kaldi")
