"""What a script does to show that a training loop fails a check: a small model notes what it sees, a hook the updates.

There are `run(**options)`, which trains `run.model` and gives what the loop gives; `steps`, for each update the passes
before it, a copy of the model, its gradients and the learning rate; `seen`, the passes since; `train` and `evaluation`.
A pass is: indices of samples, whether in train mode, whether with gradients.
"""

from .loop_records import FIRST_OF_EVALUATION

PREAMBLE = """
import IMPORTS
from torch.optim.optimizer import register_optimizer_step_pre_hook as before_updates
seen, steps = [], []
class Model(torch.nn.Sequential):
    def forward(self, tokens):
        KILLED
        return seen.append(PASS) or super().forward(tokens).mT
class Data(torch.utils.data.TensorDataset): tokens, targets = (property(lambda d, i=i: d.tensors[i]) for i in (0, 1))
data = lambda i: Data(torch.arange(96)[i][:, None].expand(-1, 5), TARGETS[i])
hook = before_updates(lambda o, *_: steps.append(NOTED) or seen.clear())
JOB = dict(train=data(slice(22)), evaluation=data(slice(64, 71)), folder=pathlib.Path(tempfile.mkdtemp()), DEFAULTS)
def run(**options):
    run.model, run.kill, seen[:], steps[:] = torch.manual_seed(0) and Model(LAYERS), options.pop("kill", None), [], []
    return torch.seed() and LOOP(types.SimpleNamespace(**{**JOB, "model": run.model, **options}))
"""
TARGETS = "(torch.arange(480).view(96, 5) % 3).masked_fill(torch.arange(5) >= VALID, -100)"
LAYERS = "torch.nn.Embedding(96, 8), torch.nn.Dropout(DROP), torch.nn.Linear(8, 3)"
PASS = "(tokens[:, 0].tolist(), self.training, torch.is_grad_enabled())"
NOTED = '(seen[:], copy.deepcopy(run.model), [p.grad.clone() for p in run.model.parameters()], o.param_groups[0]["lr"])'
DEFAULTS = (
    "steps=9, batch_size=8, accumulate=1, lr=0.01, seed=0, evaluation_batch_size=3, evaluate_every=1000, "
    'save_every=1000, resume=False, clip=None, ema=None, scaler=False, device="cpu"'
)
KILLED = 'assert not (self.training and run.kill == (len(steps), len(seen))), "killed"'
EVEN, UNEVEN = "3", "1 + 2 * torch.arange(96)[:, None] % 5"
GRADIENTS = """
_ = run(accumulate=PARTS)
for passes, model, found, rate in steps:
    i = torch.tensor([sample for samples, _, learns in passes if learns for sample in samples])
    loss = torch.nn.functional.cross_entropy(model.eval()(JOB["train"].tokens[i]), JOB["train"].targets[i])
    torch.testing.assert_close(found, [*torch.autograd.grad(loss, [*model.parameters()])], rtol=1e-3, atol=1e-6)
"""
ORDER = "order = [s for passes, *_ in steps for samples, _, learns in passes if learns for s in samples]"
RESUMED = """
full = run(save_every=5, folder=pathlib.Path(tempfile.mkdtemp())) and (steps[:], [*run.model.parameters()])
with contextlib.suppress(AssertionError): run(save_every=5, kill=(6, 0))
"""
GOES_ON = f"""
noted = lambda: NOTE
full = run(save_every=5, folder=pathlib.Path(tempfile.mkdtemp())) and noted()
{RESUMED.strip().splitlines()[1]}
assert run(save_every=5, resume=True) and full[-len(noted()) :] == noted(), (noted(), full)
"""
SAME_END = (
    "assert run(save_every=5, resume=True) and all(map(torch.equal, full[1], run.model.parameters())), "
    '"the weights of the resumed run are others"'
)
BODIES: dict[str, tuple[str, str]] = {  # each with the targets that are valid
    "does-as-many-steps-as-asked": (
        UNEVEN,
        """
counts = [run(accumulate=parts) and len(steps) for parts in (1, 4)]
assert counts == [9, 9], f"{counts} updates, and 9 were asked for"
""",
    ),
    "gradients-are-of-their-own-samples": (EVEN, GRADIENTS.replace("PARTS", "1")),
    "accumulation-equals-the-big-batch": (EVEN, GRADIENTS.replace("PARTS", "4")),
    "short-accumulation-is-a-mean-too": (EVEN, GRADIENTS.replace("PARTS", "4")),
    "targets-weigh-the-same": (UNEVEN, GRADIENTS.replace("PARTS", "4")),
    "clipping-is-of-the-whole-gradient": (
        EVEN,
        """
_ = run(accumulate=4, clip=0.02)
norms = [float(torch.cat([g.flatten() for g in gradients]).norm()) for _, _, gradients, _ in steps]
assert all(abs(norm - 0.02) < 1e-4 for norm in norms), norms
""",
    ),
    "same-seed-same-run": (
        UNEVEN,
        """
first, then = ([*(run(seed=seed) and run.model).parameters()] for seed in (0, 0))
assert all(map(torch.equal, first, then)), "the weights of the second run are others"
""",
    ),
    "another-seed-another-run": (
        UNEVEN,
        """
first, then = ([*(run(seed=seed) and run.model).parameters()] for seed in (0, 1))
assert not all(map(torch.equal, first, then)), "seed 1 gives the weights of seed 0"
""",
    ),
    "epochs-see-each-sample-once": (
        UNEVEN,
        f"""
_ = run()
{ORDER}
assert sorted(order[:22]) == [*range(22)], order[:22]
""",
    ),
    "epochs-are-shuffled-anew": (
        UNEVEN,
        f"""
_ = run()
{ORDER}
assert order[:22] != order[22:44] and order[:22] != sorted(order[:22]), (order[:22], order[22:44])
""",
    ),
    "trains-with-dropout": (
        UNEVEN,
        """
_ = run(evaluate_every=2)
modes = [training for passes, *_ in steps for _, training, learns in passes if learns]
assert all(modes), modes
""",
    ),
    "evaluates-without-dropout": (
        UNEVEN,
        """
_ = run()
assert not any(training for samples, training, _ in seen), "the model is evaluated in train mode"
""",
    ),
    "evaluation-counts-each-sample-once": (
        UNEVEN,
        f"""
_ = run()
counted = sorted(sample for samples, *_ in seen for sample in samples)
assert counted == [*range({FIRST_OF_EVALUATION}, {FIRST_OF_EVALUATION} + 7)], counted
""",
    ),
    "evaluation-is-the-mean-over-targets": (
        UNEVEN,
        """
found, (tokens, targets) = run().loss, JOB["evaluation"].tensors
expected = torch.nn.functional.cross_entropy(run.model.eval()(tokens), targets).item()
assert abs(found - expected) < 1e-5, (found, expected)
""",
    ),
    "evaluation-changes-nothing": (
        UNEVEN,
        """
often, once = ([*(run(evaluate_every=every) and run.model).parameters()] for every in (2, 1000))
assert all(map(torch.equal, often, once)), "with evaluations the weights are others"
""",
    ),
    "evaluation-set-is-not-trained-on": (
        UNEVEN,
        f"""
_ = run(evaluate_every=2)
{ORDER}
assert max(order) < {FIRST_OF_EVALUATION}, max(order)
""",
    ),
    "samples-go-on-after-resuming": (UNEVEN, GOES_ON.replace("NOTE", f"{ORDER.removeprefix('order = ')}")),
    "rate-goes-on-after-resuming": (UNEVEN, GOES_ON.replace("NOTE", "[rate for *_, rate in steps]")),
    "resumed-equals-uninterrupted": (UNEVEN, f"{RESUMED}{SAME_END}"),
    "resumed-amid-accumulation-equals-uninterrupted": (
        UNEVEN,
        f"{RESUMED}{SAME_END}".replace("save_every=5", "save_every=5, accumulate=2").replace("(6, 0)", "(6, 1)"),
    ),
    "average-changes-nothing": (
        UNEVEN,
        """
averages = [run(ema=ema).average for ema in (0.9, None)]
with_average, without = ([*(run(ema=ema) and run.model).parameters()] for ema in (0.9, None))
assert all(map(torch.equal, with_average, without)), "with an average the weights are others"
assert not all(map(torch.equal, averages[0].parameters(), with_average)), "the average is the weights of the last step"
""",
    ),
    "average-goes-on-after-resuming": (
        UNEVEN,
        """
full = run(save_every=5, ema=0.9, folder=pathlib.Path(tempfile.mkdtemp())).average
with contextlib.suppress(AssertionError): run(save_every=5, ema=0.9, kill=(6, 0))
found = run(save_every=5, ema=0.9, resume=True).average
assert all(map(torch.equal, full.parameters(), found.parameters())), "the average of the resumed run is another"
""",
    ),
}


def written(check: str, loop: str, imports: set[str]) -> str | None:
    """The script without its first line; None if there is none for a check."""
    if check not in BODIES:
        return None
    valid, body = BODIES[check]
    resumes, measures = "kill=" in body, valid == EVEN or "passes, model, found" in body
    text = PREAMBLE.replace("        KILLED\n", f"        {KILLED}\n" * resumes)
    modules = {name.removeprefix("import ") for name in imports if name.startswith("import ")}
    modules |= {"copy", "pathlib", "tempfile", "types"}
    modules |= {"contextlib"} if resumes else set()
    values = {"IMPORTS": ", ".join(sorted(modules)), "TARGETS": TARGETS, "LAYERS": LAYERS, "NOTED": NOTED, "PASS": PASS}
    values |= {"DEFAULTS": DEFAULTS, "VALID": valid, "DROP": "0.0" if measures else "0.5", "LOOP(": f"{loop}("}
    for name, value in values.items():
        text = text.replace(name, value)
    others = "".join(f"{name}\n" for name in sorted(imports) if name.startswith("from "))
    return others + text.strip() + "\n" + body.strip()
