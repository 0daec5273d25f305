"""Every link of every Markdown page leads to a file of the repository, and to a heading in it."""

import re

import pytest

from tests.markdown import anchors, links, name_of, pages
from tests.running import ROOT


def test_the_pages_are_found():
    assert {"README.md", "docs/index.md", "shards/README.md"} <= set(map(name_of, pages()))
    assert len(links(ROOT / "docs/index.md")) > 10


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{target} is outside the repository"
        assert file.exists(), target
        if anchor:
            lines = re.fullmatch(r"L\d+(-L\d+)?", anchor)
            assert lines or anchor in anchors(file), f"{target}: no such heading"
