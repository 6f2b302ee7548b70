"""What is filled into a message may begin with any letter and be any number: no "a AutoencoderKL", no "1 files"."""

import ast
import re
from pathlib import Path

import pytest

from dcae_core.errors import counted

PACK = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("nodes", "dcae_core", "scripts") for path in (PACK / folder).rglob("*.py"))
ARTICLE = re.compile(r"\b[Aa]n? \{")
NUMBER = re.compile(r"\{(len\([^}]*|[\w.]*strips)\} [a-z]+s\b")


def templates(tree: ast.AST) -> list[str]:
    """The f-strings of a source, with what is filled in between braces."""
    return [
        "".join(v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    ]


@pytest.mark.parametrize("wrong", [ARTICLE, NUMBER], ids=["article", "number"])
def test_no_message_depends_on_what_is_filled_in(wrong):
    found = [(path, text) for path in SOURCES for text in templates(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(found) > 300
    assert [(str(path.relative_to(PACK)), text) for path, text in found if wrong.search(text)] == []


def test_the_patterns_find_what_they_are_for():
    said = 'f"not a DC-AE but a {kind}", f"in {self.strips} strips", f"{len(names)} files", f"a file of {n}"'
    assert [(bool(ARTICLE.search(t)), bool(NUMBER.search(t))) for t in templates(ast.parse(said))] == [
        (True, False),
        (False, True),
        (False, True),
        (False, False),
    ]


def test_counted():
    assert [counted(n, "strip") for n in (0, 1, 2)] == ["0 strips", "1 strip", "2 strips"]
