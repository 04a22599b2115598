"""Scripts of at most 20 lines of plain torch that show a failure without the kit; what is checked they import."""

import contextlib
import io
import re
import sys
from typing import Any

import torch
from torch import Tensor

from . import attention_scripts, loop_scripts, model_scripts, module_scripts
from .caching import parts_of
from .loop_subjects import LoopSubject
from .measures import quiet, seeded, unchanged
from .module_subjects import EncoderSubject, ModelSubject, ModuleSubject
from .resizing import CASES, LOST, larger
from .runner import Check, Result
from .script_values import MOST_NUMBERS, empty_rows, literal, mask_text, masks_text, pairs_text
from .shrink import SQUARE
from .subjects import AttentionSubject, Subject
from .written import Written, expression_of

MOST_LINES = 20
COMPARED = """print("found", found, "expected", expected)
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)"""
HALVES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
PLAIN = "call = lambda module, *inputs: module(*inputs)"


def script_of(check: Check, subject: Subject, result: Result) -> str:
    """A script that fails where the check does; empty if there is none, or what is checked can't be imported."""
    made = _of_attention(check, subject, result) if isinstance(subject, AttentionSubject) else None
    if isinstance(subject, EncoderSubject | ModelSubject):
        made = _of_module(check, subject, result)
    if isinstance(subject, LoopSubject):
        imports = {"import torch"}
        loop = expression_of(subject.train, imports)
        made = loop and loop_scripts.written(check.id, loop, imports)
    if made is None:
        return ""
    script = f"# {check.id}: {check.sentence}\n{made}\n"
    lines = [line for line in script.splitlines() if line.strip()]
    return "\n".join(lines) + "\n" if len(lines) <= MOST_LINES and shows(script, result.message) else ""


def shows(script: str, message: str) -> bool:
    """Whether a script fails as the message of a failure says, and not by a mistake of its own."""
    names: dict[str, Any] = {"__name__": "script"}
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()), seeded(0), unchanged():
            exec(compile(script, "<script>", "exec"), names)
    except AssertionError:
        return True
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        return message.startswith(f"raises {type(error).__name__}:")
    finally:
        if "hook" in names:  # of every optimiser
            names["hook"].remove()
    return False


def _of_attention(check: Check, subject: AttentionSubject, result: Result) -> str | None:
    imports = {"import torch"}
    name, body = expression_of(subject.attention, imports), attention_scripts.BODIES.get(check.id)
    if name is None or body is None:
        return None
    attention = f"attention = {name}"
    if subject.recognised is not None:
        attention = subject.recognised.text.replace("attention(", f"{name}(").replace("def call(", "def attention(")
    half, of_memory = check.id == "half-precision-error", result.message.startswith("memory")
    square = (subject.length,) * 2 if check.id in SQUARE else ()
    n, m = (tensor.shape[2] for tensor in subject.inputs(*square)[:2])
    n, m, c = (max(64, m), max(64, m), 16) if half else (n, m, subject.head_dim)
    if subject.allowed is not None and m > MOST_NUMBERS:
        return None
    options = [option for option in ("mask", "bias") if option in subject.claimed and (option == "mask" or not half)]
    pairs = "pairs & mask[:, None, None]" if "mask" in options else "pairs"
    empty = 'assert (attention(q, k[:, :, :0], v[:, :, :0]) == 0).all(), "no keys do not give 0"'
    replaced: dict[str, str | None] = {
        "{options}": ", ".join(f"{option}={option}" for option in options),
        "{pairs}": f"bias.masked_fill(~({pairs}), -torch.inf)" if "bias" in options else pairs,
        "OPTIONS": empty_rows(subject, n),
        "MASKS": masks_text(subject, n),
        "CROSS": empty * ("cross" in subject.claimed),
        "CLAIMED": f"{subject.cost:g}",
        "COUNTED": attention_scripts.KEPT if of_memory else attention_scripts.OPERATIONS,
        "HALVES": "torch.bfloat16, torch.float16" * ("half" in subject.claimed),
        "WHAT": "numbers kept for the backward pass" if of_memory else "operations",
    }
    filled = (_filled(body, replaced) or "").replace(", )", ")")
    b, h = subject.batch, subject.heads
    mask = f"mask = {mask_text(subject, m)}" + "\nmask[0] = False" * (check.id == "masked-rows-are-zero")
    defined = {
        "reference": "from torch.nn.functional import scaled_dot_product_attention as reference",
        "q": f"q, k, v = (normal({b}, {h}, n, {c}, seed=i) for i, n in enumerate(({n}, {m}, {m})))",
        "n": f"n = {n}",
        "m": f"m = {m}",
        "mask": mask,
        "pairs": f"pairs = {pairs_text(subject, n, m)}",
        "bias": f"bias = normal(1, {h}, {n}, {m}, seed=7)",
    }
    return _assembled(subject, imports, attention.splitlines(), [], defined, filled)


def _of_module(check: Check, subject: ModuleSubject, result: Result) -> str | None:
    imports = {"import torch"}
    of_models = model_scripts.MODEL_BODIES if isinstance(subject, ModelSubject) else {}
    body = of_models.get(check.id) or module_scripts.BODIES.get(check.id)
    factory, how = expression_of(subject.factory, imports), _called(subject, imports)
    if body is None or factory is None or how is None:
        return None
    call, functions = how
    adapt, merge, reference, quantise, cached = (
        _function(getattr(subject, name, None), imports)
        for name in ("adapt", "merge", "reference", "quantise", "cached")
    )
    twin = "(module, lambda *inputs: torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False))"
    if subject.checkpointed is not None:
        other = expression_of(subject.checkpointed, imports)
        body = f"twin = {other}().to(DTYPE).train()\n_ = twin.load_state_dict(module.state_dict())\n{body.strip()}"
        twin = "(twin, run)"
    masked = isinstance(subject, EncoderSubject) and "mask" in subject.claimed
    one = (
        "longer = torch.cat([x, normal(len(x), 4, x.shape[-1], seed=1)], dim=1)\n"
        "found, expected = run(module, longer, (torch.arange(5) < 1).expand(len(x), -1))[:, :1], out"
    )
    replaced = {
        "ADAPT": adapt,
        "MERGE": merge,
        "OTHER": _other(subject, result.message, imports, functions),
        "REFERENCE": reference,
        "QUANTISE": quantise,
        "SIZE": f"{result.figures.get('size', 0.1):.3g}",
        "CACHED": cached,
        "PARTS": str(parts_of(subject.inputs()[0].shape[1])) if subject.cached else "",
        **_positions(subject, result.message, imports),
        "TWIN": twin,
        "CALLED": call,
        "WIDTH": str(getattr(subject, "dim", 0)),
        "RATE": f"{subject.rate:g}",
        "WEIGHTS": str(subject.weights),
        "CLAIMED": f"{subject.cost:g}",
        "SHAPE": " and out.shape == x.shape" * isinstance(subject, EncoderSubject),
        "POISONS": _poisons(subject),
        "IDEAL": f"{result.figures.get('reference', 0):.1e}",
        "HALF": HALVES.get(result.message[:4], "torch.bfloat16"),
        "FACTOR": "100" if result.message.startswith("fp16") else "1e4",
        "ONE": one * masked,
    }
    filled = _filled(body, replaced)
    if filled is None:
        return None
    return _assembled(subject, imports, _made(factory, filled), functions, _inputs(subject), filled)


def _made(factory: str, body: str) -> list[str]:
    """Lines that make the module as the check does; what trains starts from what the factory makes."""
    lines = ["torch.manual_seed(0)", f"module = {factory}()"]
    if "optimizer" not in body:
        lines.append("for p in module.parameters(): p.data += 0.1 * torch.randn_like(p)")
    lines.append("module = module.to(DTYPE).eval()")
    if "make(" not in body:
        return lines
    lines = ["torch.manual_seed(seed)", *lines[1:-1], "return module.to(DTYPE).eval()"]
    return ["def make(seed=0):", *(f"    {line}" for line in lines), "module = make()"]


def _inputs(subject: ModuleSubject) -> dict[str, str]:
    """Definitions of what a body may name."""
    if isinstance(subject, ModelSubject):
        options = {"batch": "inputs", "padded": "padded", "left": "left", "emptied": "emptied", "altered": "altered"}
        options["ragged"] = "samples"
        batches = {name: f"{name} = {_batch(getattr(subject, option))}" for option, name in options.items()}
        return batches | {"grads": module_scripts.GRADS}
    assert isinstance(subject, EncoderSubject)
    masked = "mask" in subject.claimed
    lengths = tuple(len(sample) for sample in subject.packed_samples())
    return {
        "x": f"x = normal({subject.batch}, {subject.length}, {subject.dim}, seed=0)",
        "mask": f"mask = {literal(subject.mask())}",
        "inputs": "inputs = [x, mask]" if masked else "inputs = [x]",
        "samples": f"samples = [normal(1, n, {subject.dim}, seed=i)[0] for i, n in enumerate({lengths})]",
        "grads": module_scripts.GRADS,
    }


def _poisons(subject: ModuleSubject) -> str:
    if isinstance(subject, ModelSubject) and subject.ragged and not subject.ragged[0].is_floating_point():
        return "(sample.flip(-1), sample[:1].expand_as(sample))"
    return "(sample.flip(-1), torch.full_like(sample, torch.nan))"


def _called(subject: ModuleSubject, imports: set[str]) -> tuple[str, list[str]] | None:
    """The name of a function that calls the module, and lines that define it, `run` and `packed`.

    `run` leaves out the padding of encoders.
    """
    lines: list[str] = []
    if isinstance(subject.call, Written):
        name, lines = "call", subject.call.text.splitlines()
    elif subject.call is not None:
        name = expression_of(subject.call, imports)
    else:
        with seeded(0):
            module = subject.factory()
        name = "call"
        if "core.encoder.encoder" in sys.modules and isinstance(module, sys.modules["core.encoder.encoder"].Encoder):
            imports.add("from core import Tokens")
            lines = ["call = lambda module, x, mask=None: module(Tokens(x, mask)).x"]
        else:
            lines = [PLAIN]
    if name is None:
        return None
    if isinstance(subject, EncoderSubject) and "mask" in subject.claimed:
        itself = lines[-1:] == [PLAIN]
        one, two = ("module(x)", "module(x, mask)") if itself else (f"{name}(module, x)", f"{name}(module, x, mask)")
        lines.append(f"run = lambda module, x, mask=None: {one} if mask is None else {two}.where(mask[..., None], 0)")
    else:
        lines.append(f"run = {name}")
    if isinstance(subject, ModelSubject):
        return name, [*lines, "packed = run"]
    packed = getattr(subject, "packed", None)
    if isinstance(packed, Written):
        return name, lines + packed.text.splitlines()
    packed = packed and expression_of(packed, imports)
    return name, lines + [f"packed = {packed}"] * bool(packed)


def _other(subject: ModuleSubject, message: str, imports: set[str], functions: list[str]) -> str | None:
    """An expression for the output in the way that a message names; its function is added."""
    ways = {**(subject.ways or {}), **(subject.inference_ways or {})}
    name = next((name for name in ways if f", {name}" in message), None)
    if name is None:
        return None
    way = ways[name]
    if isinstance(way, Written):
        functions += way.text.replace(f"def {way.name}(", "def other(").splitlines()
    elif expression := expression_of(way, imports):
        functions.append(f"other = {expression}")
    else:
        return None
    masked = isinstance(subject, EncoderSubject) and "mask" in subject.claimed
    return "other(module, *inputs)" + ".where(mask[..., None], 0)" * masked


def _positions(subject: ModuleSubject, message: str, imports: set[str]) -> dict[str, str | None]:
    """What the scripts of resized positions name, for the case that a message is of."""
    if not isinstance(subject, ModelSubject) or subject.positions is None:
        return {}
    case = next((case for what, case in CASES.items() if what in message), ("t", "-t", "p"))
    lost = 'assert not torch.equal(found, expected), "the positions have no influence"'
    to, pixels = larger(subject)
    sides = pixels.unflatten(3, (to[1], -1)).unflatten(2, (to[0], -1)).shape
    with torch.no_grad():
        tokens = subject.run(subject.make(), *subject.inputs()).ndim == 3
    return {
        "RESIZE": _function(subject.positions.resize, imports),
        "GRID": str(subject.positions.grid),
        "TABLES": str([*subject.positions.tables]),
        "TO": str(to),
        "PATCHES": ", ".join(map(str, sides)),
        "REDUCED": ".mean(1)" * tokens,
        **dict(zip(("FIRST", "THEN", "MOVED"), case, strict=True)),
        "COMPARED": lost if message == LOST else COMPARED.splitlines()[1],
    }


def _function(function: Any, imports: set[str]) -> str | None:
    return function.text if isinstance(function, Written) else expression_of(function, imports)


def _assembled(
    subject: Subject, imports: set[str], made: list[str], functions: list[str], defined: dict[str, str], body: str
) -> str:
    """The lines in order: imports, what is checked, functions and inputs that are named, and the body."""
    lines = body.strip().splitlines()
    if lines[-1].startswith(("found", "expected")):
        lines += COMPARED.splitlines()
    wanted = "\n".join(lines)
    inputs: list[str] = []
    for name in reversed(defined):  # what is named by a line that is named
        again = re.search(rf"^{name} = (.*)$", wanted, flags=re.MULTILINE)
        before = wanted if again is None else wanted[: again.start()] + again[1]
        if re.search(rf"(?<![\w\".]){name}\b(?!\")", before):
            inputs.insert(0, defined[name])
            wanted = f"{defined[name]}\n{wanted}"
    blocks = re.split(r"\n(?=\S)", "\n".join(functions))
    for block in reversed(blocks):
        name = re.sub(r"^def ", "", block).partition("(" if block.startswith("def") else " ")[0]
        if re.search(rf"\b{name}\b", wanted):
            wanted = f"{block}\n{wanted}"
            inputs.insert(0, block)
    text = "\n".join([*made, *inputs, *lines])
    text = text.replace("TOLERANCE", f"{subject.tolerance:g}").replace("DTYPE", str(subject.dtype))
    for module in ("math", "copy", "itertools", "torch.utils.checkpoint", "torch.utils.flop_counter"):
        imports |= {f"import {module}"} if f"{module}." in text else set()
    imports |= {"from torch import nn"} if re.search(r"(?<!\.)\bnn\.", text) else set()
    normal = "def normal(*shape, seed): return torch.randn(shape, generator=torch.Generator().manual_seed(seed)"
    normal += ", dtype=torch.float64)" + f".to({subject.dtype})" * (subject.dtype != torch.float64)
    return "\n".join([*sorted(imports, key=len), *([normal] if "normal(" in text else []), text])


def _filled(body: str, replaced: dict[str, str | None]) -> str | None:
    """The body with names in capitals replaced; None if one that it has is not known."""
    for name, value in replaced.items():
        pattern = re.escape(name) if name.startswith("{") else rf"(?<![A-Z]){name}(?![A-Z])"
        if value is None and re.search(pattern, body):
            return None
        body = re.sub(pattern, lambda _, value=value: value or "", body)
    return body


def _batch(batch: Any) -> str:
    return f"[{', '.join(literal(i) if isinstance(i, Tensor) else repr(i) for i in batch or ())}]"
