"""Two processes share the tests (pytest-xdist): one thread each, in what they start as well."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
