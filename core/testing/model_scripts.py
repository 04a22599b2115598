"""What a script does to show that a model fails a check of models alone. See module_scripts.py."""

MODEL_BODIES = {
    "resized-to-its-size-changes-nothing": """
expected = run(module, *inputs)
found = run(RESIZE(module, *GRID).eval(), *inputs)
""",
    "resized-positions-keep-their-places": """
def output(change, patches):
    resized = copy.deepcopy(module)
    for table in (resized.get_parameter(name).data for name in TABLES):
        values = change(normal(*GRID, table.shape[-1], seed=6)).flatten(0, 1)
        table.view(-1, table.shape[-1])[-len(values) :] = values
    return run(RESIZE(resized, *TO).eval(), patches.flatten(4).flatten(2, 3))REDUCED
p = normal(PATCHES, seed=5)
expected, found = output(lambda t: FIRST, p), output(lambda t: THEN, MOVED)
COMPARED
""",
    "left-padding-changes-nothing": """
torch.testing.assert_close(run(module, *left), run(module, *inputs), rtol=0, atol=1e-6)
""",
    "padding-changes-nothing-in-training": """
module.train()
expected = run(module, *inputs)
found = run(module, *padded)[tuple(map(slice, expected.shape))]
torch.testing.assert_close([found, *grads(found)], [expected, *grads(expected)], rtol=0, atol=1e-6)
""",
    "fully-masked-sample-is-harmless": """
expected, out = run(module, *inputs), run(module, *emptied)
print(out)
assert out.isfinite().all() and all(g.isfinite().all() for g in grads(out))
torch.testing.assert_close(out[1:], expected[1:], rtol=0, atol=TOLERANCE)
""",
    "padding-changes-nothing": """
expected = run(module, *inputs)
found = run(module, *padded)[tuple(map(slice, expected.shape))]
""",
    "masked-never-leaks": """
expected, found = run(module, *inputs), run(module, *altered)
print("found", found, "expected", expected)
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
torch.testing.assert_close(grads(found), grads(expected), rtol=0, atol=1e-6)
""",
}
