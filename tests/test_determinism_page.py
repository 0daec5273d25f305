"""docs/determinism.md: behind each sentence stands a test that exists, or "no test"."""

import ast
import re
from pathlib import Path

import pytest

from tests.running import ROOT

PAGE = ROOT / "docs/determinism.md"
NAMED = re.compile(r"`(tests/\w+\.py)::(\w+)`( \(gpu\))?")
VERIFIED = re.compile(r"`dcgan-doctor --verify`: ([^,|]+?)(?= *(?:$|, `))")


def rows() -> list[tuple[str, str, str]]:
    """What is said, the answer, and what is behind it."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    return [
        (cells[0], cells[1], cells[2])
        for cells in lines
        if len(cells) == 3 and cells[2] != "behind it"
    ]


def test_the_page_has_its_sentences():
    assert len(rows()) > 30
    assert len({said for said, _, _ in rows()}) == len(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_sentence_names_its_tests_or_says_that_there_is_none(row):
    said, answer, behind = row
    if behind.startswith("no test"):
        assert answer.split(":")[0] in ("no", "not checked", "not promised")
        return
    assert NAMED.search(behind) or VERIFIED.search(behind), said
    assert len(NAMED.findall(behind)) == behind.count("::"), behind
    for file, name, marked in NAMED.findall(behind):
        found = functions(ROOT / file)
        assert name in found, f"{file} has no {name}"
        assert found[name] == bool(marked), f"{name}: whether it needs a GPU"
    if re.search(r"on CUDA|on a GPU", said):
        assert "(gpu)" in behind or VERIFIED.search(behind), said


def test_the_doctors_checks_are_named_as_it_names_them():
    told = [name for _, _, behind in rows() for name in VERIFIED.findall(behind)]
    source = (ROOT / "dcgan/checks/verify.py").read_text()
    assert len(told) >= 4
    for name in told:
        assert f'"{name}": lambda' in source, name


def functions(path: Path) -> dict[str, bool]:
    """A file's tests, each with whether it is marked `gpu`, alone or with its whole file."""
    tree = ast.parse(path.read_text())
    whole = any(
        isinstance(node, ast.Assign) and ast.unparse(node) == "pytestmark = pytest.mark.gpu"
        for node in tree.body
    )
    return {
        node.name: whole or any("mark.gpu" in ast.unparse(each) for each in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
