"""Forced backends, records and the layers of shared blocks belong to the thread or task that they are set in."""

import asyncio
import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context

import pytest
import torch
from processes import run_script

from core import Encoder, EncoderConfig, Tokens, adapters, attend, attention_backend, explain, record_attention
from core.adapters import LoRA
from core.attention.recording import Recomputation
from core.scoped import Scoped
from core.sparse import Local

Q, K, V = torch.randn(3, 1, 2, 70, 8).unbind()


def backend():
    return explain(Q, K, V).backend


def test_nested_blocks():
    with attention_backend("reference"):
        with attention_backend("dense"):
            assert explain(Q, K, V) == ("dense", "it is forced")
        assert backend() == "reference"
    assert explain(Q, K, V) == ("dense", "there is no pattern, and there are few pairs")


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1), (1, 2, 0)], ids=str)
def test_blocks_may_be_left_in_any_order(order):
    """The one entered last among those still open counts; with none left nothing is forced."""
    names = ["reference", "blockwise", "dense"]
    setting, blocks = Scoped("which"), []
    for name in names:
        blocks.append(setting.set(name))
        blocks[-1].__enter__()
    for number in order:
        blocks[number].__exit__(None, None, None)
        names[number] = None
        assert setting.get() == next((name for name in reversed(names) if name), None)


def test_an_error_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), attention_backend("reference"), record_attention():
        _ = 1 / 0
    assert explain(Q, K, V).why == "there is no pattern, and there are few pairs"


def test_a_forced_backend_is_of_its_thread():
    inside, left, found = threading.Event(), threading.Event(), {}

    def force(name):
        with attention_backend(name):
            inside.set()
            left.wait(10)
            found[name] = backend()
        found["after"] = explain(Q, K, V).why

    thread = threading.Thread(target=force, args=("reference",))
    thread.start()
    inside.wait(10)
    assert explain(Q, K, V) == ("dense", "there is no pattern, and there are few pairs")
    with attention_backend("dense"):
        left.set()
        thread.join()
        assert explain(Q, K, V).why == "it is forced"
    assert found == {"reference": "reference", "after": "there is no pattern, and there are few pairs"}
    assert explain(Q, K, V).why == "there is no pattern, and there are few pairs"


def test_a_forced_backend_is_of_its_task():
    async def force(name, others):
        with attention_backend(name), record_attention() as calls:
            await others.wait()
            attend(Q, K, V)
        return [call.backend for call in calls]

    async def both():
        others = asyncio.Barrier(2)
        return await asyncio.gather(force("reference", others), force("dense", others))

    assert asyncio.run(both()) == [["reference"], ["dense"]]


def test_a_copied_context_forces_no_longer_than_the_block():
    with attention_backend("reference"):
        context = copy_context()
        assert context.run(backend) == "reference"
    assert context.run(backend) == "dense"


def test_records_of_threads_are_apart():
    together = threading.Barrier(4)

    def record(number):
        q = torch.randn(1, 1, number + 1, 4)
        with record_attention() as calls:
            together.wait(10)
            for _ in range(20):
                attend(q, q, q)
        return [call.q.shape[2] for call in calls]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(record, range(4))) == [[number + 1] * 20 for number in range(4)]


def shared(checkpointing=False, groups=2):
    """Blocks that serve three layers each, with a LoRA that differs by layer."""
    torch.manual_seed(0)
    config = EncoderConfig(dim=16, depth=6, heads=2, shared_groups=groups, checkpointing=checkpointing)
    encoder = adapters.add(Encoder(config), LoRA(rank=2, roles=("q", "v", "mlp_in", "mlp_out")))
    for name, parameter in encoder.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter)
    return encoder


@pytest.mark.parametrize("checkpointing", [False, True])
def test_threads_share_a_model_whose_layers_share_blocks(checkpointing):
    encoder = shared(checkpointing)
    inputs = [torch.randn(1, 12, 16) for _ in range(2)]

    def passed(x):
        x = x.clone().requires_grad_()
        out = encoder(Tokens(x)).x
        return out.detach(), *torch.autograd.grad(out.square().sum(), x)

    expected = [passed(x) for x in inputs]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads take turns in the middle of a pass
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(passed, inputs * 8))
    finally:
        sys.setswitchinterval(interval)
    for mine, true in zip(found, expected * 8, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)


def test_a_backward_pass_in_another_thread_computes_the_same_again():
    grads = []
    for checkpointing in (False, True):
        encoder = shared(checkpointing)
        loss = encoder(Tokens(torch.ones(1, 12, 16) / 7)).x.square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        grads.append([p.grad for p in encoder.parameters() if p.requires_grad])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("forced", [None, "native", "blockwise", "dense", "reference"])
@pytest.mark.parametrize("at_backward", [None, "dense", "reference"])
def test_what_is_computed_again_is_computed_by_the_same_backend(forced, at_backward, monkeypatch):
    """Wherever the backward pass is, and as often as it comes; and it is not recorded."""
    module = importlib.import_module("core.attention.attend")
    served, choose = [], module.choose
    monkeypatch.setattr(module, "choose", lambda call: served.append(choose(call)) or served[-1])
    config = EncoderConfig(dim=16, depth=2, heads=2, patterns=Local(64), checkpointing=True)
    encoder, x = Encoder(config), torch.randn(1, 200, 16, requires_grad=True)
    with ExitStack() as stack:
        if forced:
            stack.enter_context(attention_backend(forced))
        calls = stack.enter_context(record_attention())
        loss = encoder(Tokens(x)).x.square().sum()
    with ExitStack() as stack:
        if at_backward:
            stack.enter_context(attention_backend(at_backward))
        again = stack.enter_context(record_attention())
        loss.backward(retain_graph=True)
        loss.backward()
    expected = calls[0].backend, calls[0].why
    assert len(served) == 6 and {*served} == {expected} and len(calls) == 2 and not again
    assert explain(Q, K, V).why == "there is no pattern, and there are few pairs"


def test_the_same_again_may_be_entered_more_than_once():
    with attention_backend("reference"):
        again = Recomputation()
    with again, again:
        assert backend() == "reference"
    with again:
        assert backend() == "reference"
    assert explain(Q, K, V).why == "there is no pattern, and there are few pairs"


COMPILED = """
import threading
import torch
from core import Encoder, EncoderConfig, Tokens, adapters, attend, attention_backend, record_attention
from core.adapters import LoRA
from core.sparse import Local

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 70, 8).unbind()
pattern, compile = Local(16), lambda f: torch.compile(f, fullgraph=True, backend="eager")

def outside(q, k, v):
    return attend(q, k, v, pattern=pattern)

def inside(q, k, v):
    with attention_backend("reference"):
        first = attend(q, k, v)
    return first + attend(q, k, v, pattern=pattern)

torch.testing.assert_close(compile(inside)(q, k, v), inside(q, k, v))

# A backend that is forced around a compiled function is guarded, in each thread by itself.
compiled, found = compile(outside), {}

def run(name):
    with attention_backend(name), record_attention() as calls:
        compiled(q, k, v)
    found[name] = [call.backend for call in calls]

compiled(q, k, v)
for name in ("blockwise", "dense"):
    thread = threading.Thread(target=run, args=(name,))
    thread.start()
    thread.join()
with record_attention() as calls:
    compiled(q, k, v)
assert found == {"blockwise": ["blockwise"], "dense": ["dense"]} and calls[0].backend == "native", (found, calls)

# Shared layers that differ by their LoRA.
encoder = adapters.add(Encoder(EncoderConfig(dim=16, depth=2, heads=2, shared_groups=1)), LoRA(rank=2))
for name, parameter in encoder.named_parameters():
    if ".up." in name:
        torch.nn.init.normal_(parameter)
tokens = Tokens(torch.randn(2, 12, 16))
torch.testing.assert_close(compile(encoder)(tokens).x, encoder(tokens).x)
exported = torch.export.export(encoder, (tokens,)).module()
torch.testing.assert_close(exported(tokens).x, encoder(tokens).x)
"""


def test_torch_compile_keeps_one_graph_and_guards_what_is_forced(tmp_path):
    run_script(COMPILED, tmp_path)
