"""docs/gpu.md: each claim about a GPU names its proofs, and they exist."""

import re

import pytest

from tests.running import ROOT
from tests.test_determinism_page import NAMED, functions

PAGE = ROOT / "docs/gpu.md"
VERIFIED = re.compile(r"`dcgan-doctor --verify`: (.+?)(?=$|, `)")
DOCTOR = (ROOT / "dcgan/checks/verify.py").read_text()


def claims() -> list[tuple[str, ...]]:
    """What is claimed, the proof without a GPU, that with one, and what was seen."""
    form = r"^\*\*(.+)\.\*\*\n\n- without a GPU: (.+)\n- with one: (.+)\n- seen: (.+)$"
    return re.findall(form, PAGE.read_text(), re.MULTILINE)


def test_the_page_has_its_claims():
    assert len(claims()) > 15
    assert len({claim for claim, *_ in claims()}) == len(claims())
    assert PAGE.read_text().count("- seen: ") == len(claims())


@pytest.mark.parametrize("row", claims(), ids=lambda row: row[0][:40])
def test_each_claim_has_a_proof_of_either_kind(row):
    claim, without, beside, seen = row
    assert NAMED.search(without) or without.startswith("no test"), claim
    assert "(gpu)" in beside or VERIFIED.search(beside) or beside.startswith("as above"), claim
    assert not any(marked for _, _, marked in NAMED.findall(without)), claim
    proofs = f"{without}, {beside}"
    assert len(NAMED.findall(proofs)) == proofs.count("::"), claim
    for file, name, marked in NAMED.findall(proofs):
        found = functions(ROOT / file)
        assert name in found, f"{file} has no {name}"
        assert found[name] == bool(marked), f"{name}: whether it needs a GPU"
    for name in VERIFIED.findall(beside):
        assert f'"{name}": lambda' in DOCTOR, name
    assert seen.startswith(("yes", "no", "the first")), claim
