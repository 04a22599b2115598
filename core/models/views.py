"""Several views of a sample, which some models average in evaluation (test-time augmentation)."""

from torch import nn

from ..scoped import Scoped

ONE_VIEW: Scoped[nn.Module] = Scoped("the model that averages no views, since what it costs to train is measured")
