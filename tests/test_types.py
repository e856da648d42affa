"""The glossary of axis letters."""

import ast
import re
from pathlib import Path

import pytest

import persim_gym
from persim_gym import types

PACKAGE = Path(persim_gym.__file__).parent
SHAPE = re.compile(r"\(([\w·+ …,-]*,[\w·+ …,-]*)\)")
"""A tuple of axes, "(M, N, D·r)" or "(T,)"."""


def letters(text):
    """The capital letters that stand for an axis in a text's shapes."""
    axes = [axis.strip() for shape in SHAPE.findall(text) for axis in shape.split(",")]
    return {
        letter for axis in axes if re.fullmatch(r"[\w·+ …-]{1,9}", axis) for letter in re.findall(r"\b[A-Z]\b", axis)
    }


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_axis_is_in_the_glossary(path):
    known = set(re.findall(r"\b[A-Z]\b", " ".join(re.findall(r"^(\w(?:, \w)?) {2,}", types.__doc__, re.MULTILINE))))
    assert {"B", "I", "O", "T"} <= known
    tree = ast.parse(path.read_text())
    texts = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert letters(" ".join(texts)) <= known


def test_letters_are_found():
    assert letters("weights (M, D·r, B + 1), counts (N,) and (V, …); not (appendix A), (e.g. X) nor f(Y)") == set(
        "MDBNV"
    )
