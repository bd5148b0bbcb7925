"""Properties are tried on the same examples every time, and on no clock: fresh ones are for the night."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[2]


def test_every_property_takes_its_examples_from_the_profile() -> None:
    seen = []
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        limits = {"examples"} | {
            ast.unparse(node.targets[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("examples(")
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [ast.unparse(one).partition("(")[0] for one in node.decorator_list]
                if "given" in names:
                    seen.append(node.name)
                    assert limits & {*names}, f"{path}: {node.name}"

    assert len(seen) > 50
