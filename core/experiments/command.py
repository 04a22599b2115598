"""`python -m <modality>.train <experiment> [options]`, and `python -m <modality>.probe`."""

import difflib
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, is_dataclass, replace

from ..errors import UserError
from ..objectives.classification import Classification
from ..training.processes import make_accelerator, shut_down
from .cli import user_errors
from .config import Experiment
from .experiment import task_to_probe, train_experiment
from .jobs import FIELDS, unblock_signals
from .options import parse_options
from .probe import MAX_SAMPLES, probe, some_of
from .run import old_run, saved_experiment
from .search import is_search, run_search
from .sweep import is_sweep, run_sweep
from .task import Modality, experiment_name
from .words import out_option, read_options

LEFT_OPEN = (
    "If left out, the shape of the model, --train.steps, --train.batch-size, --train.accumulate, --train.lr,\n"
    "--train.warmup, --train.eval-every and --train.save-every follow your data (--size); the defaults shown for them\n"
    "are those of --size None."
)
SEVERAL = (
    "Several values of an option are as many runs: --train.seed 0 1 2.\n"
    "--search 'train.lr=log(1e-4,1e-2)' --trials 30 looks for the best values on the validation set; there are\n"
    "log(LEAST,MOST), uniform(LEAST,MOST), int(LEAST,MOST) and choice(VALUE,...).\n"
    "--jobs 4 runs four of them at once on this machine, --slurm partition=gpu,time=240 on a cluster."
)


def train_command(modality: Modality, argv: Sequence[str] | None = None) -> None:
    """Parse, train, report. Ends the process with 1 and one sentence where the user made a mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        user_errors(lambda: _train_or_sweep(modality, argv), to_the_end=True)
    except SystemExit as end:
        shut_down(end.code)
        raise
    shut_down()


def probe_command(modality: Modality, argv: Sequence[str] | None = None) -> None:
    """Print the accuracy of probes of the frozen features of the model in --init, on the data of an experiment."""
    user_errors(lambda: _probe(modality, list(sys.argv[1:] if argv is None else argv)))


def _train_or_sweep(modality: Modality, argv: list[str]) -> None:
    unblock_signals()
    name, options, default = _read_command(modality, argv)

    def parse(options: list[str]) -> Experiment:
        return parse_experiment(modality, [name, *options])[1]

    if is_search(options):
        run_search(f"{modality.name}.train", name, options, parse)
    elif is_sweep(options, default):
        run_sweep(f"{modality.name}.train", name, options, default, parse)
    elif given := [option.word for option in read_options(options) if option.field in FIELDS]:
        raise UserError(f"{given[0]} is for several runs: give an option several values, or --search.")
    else:
        train_experiment(modality, *parse_experiment(modality, argv), given_fields(options))


def _probe(modality: Modality, argv: list[str]) -> None:
    name, experiment = parse_experiment(modality, argv, command="probe")
    if experiment.init is None:
        raise UserError("There is nothing to probe: name a model with --init.")
    task = task_to_probe(modality, experiment)
    if not isinstance(task.objective, Classification):
        raise UserError(f"{name} has no classes to probe for: choose another experiment.")
    device = make_accelerator(experiment.train)[0].device
    train, untrained = some_of(task.train, MAX_SAMPLES), type(task.model)(task.model.config)
    for model, source in ((task.model, experiment.init), (untrained, "random weights")):
        linear, neighbours = probe(model.to(device), modality.features, train, task.test, task.collate)
        print(f"{name}, features of {source}: linear probe {linear:.2%}, nearest neighbours {neighbours:.2%}")


def parse_experiment(modality: Modality, argv: list[str], command: str = "train") -> tuple[str, Experiment]:
    """The experiment that the first word names, changed by the options that follow."""
    name, options, default = _read_command(modality, argv, command)
    if "--resume" in options:
        # A resumed run has its own settings, except for those on the command line.
        out = out_option(options)
        default = replace(saved_experiment(old_run(out, name), type(default), modality.name, name), out=out)
    function = next(function for function in modality.experiments if experiment_name(function) == name)
    program = f"python -m {modality.name}.{command} {name}"
    notes = [LEFT_OPEN] if default.size is not None else []
    notes += [SEVERAL] if command == "train" else []
    description = "\n\n".join([inspect.getdoc(function) or "", *notes])
    chosen = parse_options(type(default), options, program, description, default)
    _check_effects(chosen, default, given_fields(options))
    return name, chosen


def given_fields(options: Sequence[str]) -> frozenset[str]:
    """The names of the fields that options set."""
    fields = (option.field.rpartition(".") for option in read_options(options))
    return frozenset(f"{parents}{dot}{last.removeprefix('no_')}" for parents, dot, last in fields)


def _check_effects(chosen: Experiment, default: Experiment, given: Collection[str]) -> None:
    """Refuse options that would change nothing; given: the names of the fields on the command line."""
    masked = getattr(chosen, "masked", None)
    idle = {
        "lora": chosen.tune != "lora" and "--tune lora",
        "adapter": chosen.tune != "adapter" and "--tune adapter",
        "prompt": chosen.tune != "prompt" and "--tune prompt",
        "distill": chosen.distill.teacher is None and "--distill.teacher",
        "masked": masked is not None and not masked.ratio and "a --masked.ratio of more than 0",
    }
    if hasattr(chosen, "latent") and (options := sorted(name for name in given if name.startswith("masked."))):
        raise UserError(f"--{options[0]} has no effect on adapt: use the options --latent.*.")
    for name, needed in idle.items():
        if needed and getattr(chosen, name) != getattr(default, name):
            raise UserError(f"The options --{name}.* have no effect without {needed}.")
    if options := sorted(name for name in given if name.startswith("data.tokenizer.")):
        _check_tokenizer(chosen, options)
    if getattr(chosen.data, "folds", None) is not None and "data.test_fraction" in given:
        raise UserError("--data.test-fraction has no effect, because --data.folds makes the test splits: leave it out.")
    if chosen.train.tokens_per_batch is not None and "train.batch_size" in given:
        raise UserError(
            f"--train.batch-size has no effect, because --train.tokens-per-batch is {chosen.train.tokens_per_batch}: "
            "leave one of the two out."
        )


def _check_tokenizer(chosen: Experiment, given: Sequence[str]) -> None:
    """Refuse options of a tokenizer, of which some are given, where another tokenizer is used than they describe."""
    path, others = chosen.data.tokenizer.path, [name for name in given if name != "data.tokenizer.path"]
    if chosen.init is not None:
        source, unused = "--init", given
    elif path is not None:
        source, unused = "--data.tokenizer.path", others
    elif hasattr(chosen, "latent") and chosen.distill.teacher is not None:  # its tokens are learnt, of its token ids
        source, unused = "--distill.teacher", others
    else:
        return
    if unused:
        raise UserError(f"{source} brings its own tokenizer: leave out --{unused[0].replace('_', '-')}.")


def _read_command(modality: Modality, argv: list[str], command: str = "train") -> tuple[str, list[str], Experiment]:
    """The experiment's name, which is the first word, the options that follow, and the experiment without them."""
    experiments = {experiment_name(function): function for function in modality.experiments}
    program = f"python -m {modality.name}.{command}"
    if not argv or argv[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<12} {_first_line(function)}" for name, function in experiments.items())
        print(f"usage: {program} EXPERIMENT [options]\n\nexperiments:\n{listing}\n")
        print(f"{program} EXPERIMENT --help lists the options of one.")
        sys.exit(0 if argv else 2)
    name, options = argv[0], argv[1:]
    if name not in experiments:
        near = difflib.get_close_matches(name, experiments, n=1, cutoff=0)[0]
        raise UserError(f"There is no experiment {name!r}: did you mean {near!r}? There are: {', '.join(experiments)}.")
    default = experiments[name]()
    return name, [_long_form(option, default) for option in options], default


def _long_form(option: str, default: Experiment) -> str:
    """--model.depth is short for --model.encoder.depth, and --model.size means --size."""
    if not option.startswith("--model."):
        return option
    name = option.removeprefix("--model.").split("=")[0].replace("-", "_")
    if name == "size":
        return option.replace("--model.", "--", 1)
    encoder = getattr(default.model, "encoder", None)
    own = {field.name for field in fields(default.model)}
    if is_dataclass(encoder) and name not in own and name in {field.name for field in fields(encoder)}:
        return option.replace("--model.", "--model.encoder.", 1)
    return option


def _first_line(function: Callable) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]
