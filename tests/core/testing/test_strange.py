"""Whatever the kit is given, it says what is wrong in a sentence: no traceback, and no pass that says nothing."""

import pytest
import strange  # noqa: F401  # imported by name
import torch

from core.testing.__main__ import main

QUICK = ("shapes-and-dtypes", "deterministic", "dropout-is-off-in-evaluation", "gradient-reaches-every-parameter")
QUICK += ("batch-changes-nothing", "padding-changes-nothing")
REFUSED = {
    "GivesADict": "(it gives something of type dict): say how to call it",
    "GivesNothing": "(it gives something of type NoneType): say how to call it",
    "GivesAnArray": "(it gives something of type ndarray): say how to call it",
    "GivesSparse": "(it gives 2 x 8 x 8, torch.float32, torch.sparse_coo for 2 x 8 x 8)",
    "GivesWholeNumbers": "(it gives 2 x 8 x 8, torch.int64 for 2 x 8 x 8)",
    "LosesAToken": "(it gives 2 x 7 x 8, torch.float32 for 2 x 8 x 8)",
    "Raises": "(it raises RuntimeError: this way not): say how to call it",
    "Exits": "(it raises SystemExit: 0): say how to call it",
    "CallsItself": "(it raises RecursionError: maximum recursion depth exceeded",
    "OnMeta": "attention.in_proj_weight is on the device meta, without numbers: make the module on a real one.",
    "Lazy": "linear.weight is made at the first call: make one call in a function, and check that.",
    "WithoutParameters": "(the width of its inputs can't be found: name it by dim): say how to call it",
    "quantised": "(the width of its inputs can't be found: name it by dim): say how to call it",
    "not_made": "strange:not_made() raises ValueError: there are no weights.",
    "makes_nothing": "strange:makes_nothing() makes something of type NoneType, not a module.",
    "with_a_lock": "can't be copied (TypeError: cannot pickle '_thread.lock' object): check a function that makes one.",
    "number": "strange:number is neither a Subject nor a function of q, k, v, a module, or a function that makes one.",
    "attention_by_name": "check def attention(q, k, v): return attention_by_name(q=q, k=k, v=v).",
}
FAILED = {
    "GivesNaN": "output: NaN or inf",
    "Frozen": "it has no trainable parameter",
    "WritesIntoItsInput": "inputs, after the call: off by",
    "DrawsRandomNumbers": "output in evaluation, at another random state: off by",
    "NeedsGradientsOff": "raises RuntimeError: call me under torch.no_grad()",
    "SwitchesGradientsOff": "it switches gradients off for everybody",
    "ChangesTheDefault": "it changes torch's default dtype for everybody",
    "scripted": "sample 0 alone: off by",
    "pair_of_attention": "it gives something of type tuple, not a tensor",
    "attention_later": "it gives something of type coroutine, not a tensor",
    "attention_of_itself": "raises RecursionError: maximum recursion depth exceeded",
}
PASSED = ("GivesAPair", "GivesAnOutput", "Prints", "OnlyByName", "OnlyFp64", "WithALock", "compiled")


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_says_what_to_do(name, capsys):
    assert main([f"strange:{name}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and REFUSED[name] in error


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("name", FAILED)
def test_a_verdict_names_the_fault(name, capsys):
    checks = QUICK[:2] if "attention" in name else QUICK
    assert main([f"strange:{name}", "--only", *checks]) == 1
    assert FAILED[name] in capsys.readouterr().out
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", PASSED)
def test_what_is_only_unusual_passes_with_its_mask(name, capsys):
    assert main([f"strange:{name}", "--only", *QUICK]) == 0
    assert "6 passed" in capsys.readouterr().out  # that of padding, too


@pytest.mark.parametrize("name, words", [("loop_that_exits", "SystemExit: 0"), ("loop_of_nothing", "of type NoneType")])
def test_loops(name, words, capsys):
    assert main([f"strange:{name}", "--only", "does-as-many-steps-as-asked"]) == 1
    assert words in capsys.readouterr().out


def test_a_mask_that_can_not_be_given_is_named():
    with pytest.warns(UserWarning, match="how valid_tokens is given was not found, so that padding is not checked"):
        assert main(["strange:MaskOfAnotherKind", "--only", *QUICK]) == 0


@pytest.mark.parametrize("name", ["WithoutParameters", "quantised"])
def test_the_width_can_be_named(name, capsys):
    assert main([f"strange:{name}", "--dim", "8", "--only", "shapes-and-dtypes"]) in (0, 1)
    assert "shapes-and-dtypes" in capsys.readouterr().out
