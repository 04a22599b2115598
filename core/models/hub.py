"""How models are saved and loaded: safetensors and config.json, locally or on the Hugging Face hub."""

import contextlib
import copy
import io
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import nn
from typing_extensions import TypedDict

from .. import adapters
from ..checkpoints.files import plain_state, read_file
from ..checkpoints.keys import load
from ..config import to_dict
from ..errors import UserError
from ..files import filling, first_line, read_json, write_json

ADAPTERS = "adapters.json"  # in which order they are on a model, and in which state


class OnModel(TypedDict):
    """In which state an adapter is."""

    enabled: bool
    strength: float


class HubModel(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model that has a `config`.

    The model's `__init__` takes its config as a dataclass or as the dict read from config.json.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        """Weights under the model's own names, and each adapter by itself."""
        bare = copy.deepcopy(self) if adapters.names(self) else self
        states = {}
        for name in adapters.names(self):
            _, adapter = adapters.on(self, name)[0]
            if adapter.merged:
                adapters.unmerge(bare, name)
            adapters.remove(bare, name)
            adapters.save(self, save_directory / "adapters" / name, name, beside=False)
            states[name] = {"enabled": adapter.enabled, "strength": adapter.strength}
        if states:
            write_json(save_directory / "adapters" / ADAPTERS, states)
        super(HubModel, bare)._save_pretrained(save_directory)

    def save_pretrained(self, save_directory, *, config=None, push_to_hub=False, **kwargs):
        """What is in the directory stays as it is until all is written; a card that is there stays for good."""
        save_directory, config = Path(save_directory), config or to_dict(self.config)
        with filling(save_directory) as partial:
            super().save_pretrained(partial, config=config, model_card_kwargs=kwargs.pop("model_card_kwargs", None))
            if (save_directory / "README.md").exists():
                (partial / "README.md").unlink()
            if not (partial / "adapters").exists():  # of a model saved there before
                shutil.rmtree(save_directory / "adapters", ignore_errors=True)
        if push_to_hub:
            return self.push_to_hub(**{"repo_id": save_directory.name, "config": config, **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()):  # the mixin announces where it reads from
            # Strict: a missing weight is an error, not a random one.
            model = super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **kwargs})
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            how = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
            folder = Path(snapshot_download(str(folder), allow_patterns="adapters/*", **how))
        folder = folder / "adapters"
        states = read_json(folder / ADAPTERS, dict[str, OnModel]) if (folder / ADAPTERS).is_file() else {}
        for name, state in states.items():
            adapters.load(model, folder / name, name)
            adapters.scale(model, name, state["strength"])
            adapters.enable(model, name, state["enabled"])
        return model

    @classmethod
    def _load_as_safetensor(cls, model: nn.Module, model_file: str, map_location: str, strict: bool) -> nn.Module:
        """As the mixin's, but what is missing or left over is named, and prefixes of a wrapped model are understood."""
        load(model, plain_state(read_file(Path(model_file)), model.state_dict().keys()))
        return model.to(map_location).eval()

    @classmethod
    def from_run(cls, run: Path | str):
        """The trained model of a run's directory, or of one that save_pretrained wrote; ready to use."""
        folder = model_folder(Path(run))
        if not (folder / "model.safetensors").is_file() or "encoder" not in read_settings(folder / "config.json"):
            raise UserError(f"{run} holds no trained model: name the directory of a finished run.")
        try:
            return cls.from_pretrained(folder).eval()
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"The model in {run} is no {cls.__name__} that can be loaded: {first_line(error)}."
            ) from None


def check_modality(source: Path | str, modality: str) -> None:
    """A run of another modality is a mistake."""
    found = read_settings(Path(source) / "config.json").get("modality", modality)
    if found != modality:
        raise UserError(f"{source} is a run of {found}: name one of {modality}.")


def model_folder(source: Path) -> Path:
    """Where a run keeps its model; any other directory itself."""
    return source / "model" if (source / "model").is_dir() else source


def read_settings(path: Path) -> dict[str, Any]:
    """A config.json; empty if there is none."""
    return read_json(path) if path.is_file() else {}
