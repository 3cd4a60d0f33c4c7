"""What no linter checks in the docstrings: shapes of Tensors, sources of formulas, and a page for every module."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ms_gpt"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "peers" not in path.parts and path.name != "__main__.py")
# Rooms whose Cells and callables compute what a paper or a reference implementation says.
SOURCED = ("layers.py", "model.py", "heads.py", "mingpt.py", "generation/processors.py",
           "training/loss_scale.py", "training/optimizer.py", "training/schedule.py", "training/step.py")
# What only joins others together.
PLUMBING = {"Add", "Forward", "LMHead", "ScaledLoss", "TargetLoss"}
# "(B, T)", "(N,)", "(..., features)", "(tokens,)"; or words that say as much.
SHAPE = re.compile(r"\((?:[A-Z0-9.][^(),]*|rows|tokens),[^()]*\)|scalar|any shape|(?:same|one) shape|"
                   r"element by element|[Ll]ike the|see the class")


def public_objects(path):
    """Yield (qualified name, node, class that it is a method of) of all that is public in a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
            continue
        yield node.name, node, None
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item, node


def takes_or_gives_tensors(function):
    annotations = [argument.annotation for argument in (*function.args.args, *function.args.kwonlyargs,
                                                        function.args.vararg) if argument is not None]
    return any(isinstance(part, ast.Name) and part.id == "Tensor" for annotation in (*annotations, function.returns)
               if annotation is not None for part in ast.walk(annotation))


def tensors_without_shapes(path):
    for name, node, owner in public_objects(path):
        if isinstance(node, ast.FunctionDef) and takes_or_gives_tensors(node):
            is_construct = owner is not None and node.name == "construct"
            text = ast.get_docstring(owner if is_construct else node) or ""
            if not SHAPE.search(text) and not (is_construct and "As ``" in text):
                yield name
            if is_construct and len(node.args.args) > 1 and "Inputs:" not in text:
                yield f"{name}: no Inputs"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_functions_and_cells_note_the_shapes_of_tensors(path):
    assert list(tensors_without_shapes(path)) == []


@pytest.mark.parametrize("name", SOURCED)
def test_formulas_say_where_they_are_from(name):
    unsourced = [node.name for _, node, owner in public_objects(PACKAGE / name)
                 if isinstance(node, ast.ClassDef) and "Source:" not in (ast.get_docstring(node) or "")
                 and {"construct", "__call__"} & {getattr(item, "name", "") for item in node.body}]
    assert set(unsourced) <= PLUMBING


def test_every_module_has_its_place_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    documented = re.findall(r"automodule:: (\S+)", pages)
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    assert sorted(documented) == sorted(set(modules) - {"ms_gpt", "ms_gpt._lazy"})


def test_every_page_is_in_the_table_of_contents():
    toctree = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split("```{toctree}")[1].split("```")[0]
    listed = set(toctree.split()) - {":maxdepth:", "2"}
    assert listed == {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}


@pytest.mark.parametrize(("source", "fault"), [
    ('def f(x: Tensor) -> int:\n    """Count."""\n', ["f"]),
    ('def f(x: Tensor) -> int:\n    """Count the rows of (B, T)."""\n', []),
    ('class C:\n    """A cell, (B, T)."""\n    def construct(self, x: Tensor) -> Tensor:\n        """Go."""\n',
     ["C.construct: no Inputs"]),
])
def test_a_docstring_without_shapes_is_seen(source, fault, tmp_path):
    (tmp_path / "module.py").write_text(source)
    assert list(tensors_without_shapes(tmp_path / "module.py")) == fault
