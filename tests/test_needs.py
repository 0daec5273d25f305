"""A demanded thing that is absent fails a test instead of skipping it."""

import pytest

from tests import needs
from tests.needs import demanded, require


def test_absent_things_skip_and_demanded_ones_fail(monkeypatch):
    monkeypatch.setitem(needs.OBSTACLES, "dali", lambda: "it is broken")
    monkeypatch.delenv("REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="it is broken"):
        require("dali")
    monkeypatch.setenv("REQUIRE", "tar, dali")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE lists dali, but: it is broken"):
        require("dali")
    monkeypatch.setenv("REQUIRE", "dalli")
    with pytest.raises(pytest.UsageError, match="dalli; known: "):
        demanded()
