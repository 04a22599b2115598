"""How models are saved and loaded: safetensors and config.json, locally or on the Hugging Face hub."""

import contextlib
import io

from huggingface_hub import PyTorchModelHubMixin

from .config import to_dict


class HubModel(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model that has a `config`.

    The model's `__init__` takes its config as a dataclass or as the dict read from config.json.
    """

    def save_pretrained(self, save_directory, *, config=None, **kwargs):
        return super().save_pretrained(save_directory, config=config or to_dict(self.config), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()):  # the mixin announces where it reads from
            # Strict: a missing weight is an error, not a random one.
            return super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **kwargs})
