"""The tests' own helpers: absent things skip, demanded ones fail, what blocks is found out."""

import time

import pytest

from tests import needs
from tests.needs import chromium, demanded, require, within


def test_absent_things_skip_with_their_reason(monkeypatch):
    monkeypatch.delenv("REQUIRE", raising=False)
    monkeypatch.setitem(needs.OBSTACLES, "dali", lambda: "it is broken")
    with pytest.raises(pytest.skip.Exception, match="it is broken"):
        require("dali")


def test_demanded_things_fail_when_absent(monkeypatch):
    monkeypatch.setenv("REQUIRE", "tar, dali")
    monkeypatch.setitem(needs.OBSTACLES, "dali", lambda: "it is broken")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE lists dali, but: it is broken"):
        require("dali")


def test_present_things_pass(monkeypatch):
    monkeypatch.setenv("REQUIRE", "dali")
    monkeypatch.setitem(needs.OBSTACLES, "dali", lambda: None)
    require("dali")


def test_misspelt_demands_are_refused(monkeypatch):
    monkeypatch.setenv("REQUIRE", "dalli")
    with pytest.raises(pytest.UsageError, match="dalli; known: bash, chromium, dali, gpu, tar"):
        demanded()


def test_a_browser_is_one_that_can_be_run_and_driven(monkeypatch):
    programs = {"google-chrome": "/opt/chrome"}
    monkeypatch.setattr("shutil.which", programs.get)
    assert chromium() == "/opt/chrome"
    programs["/usr/bin/chromium"] = "/usr/bin/chromium"
    assert chromium() == "/usr/bin/chromium"
    programs.clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert needs.OBSTACLES["chromium"]() == "no Chromium"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert needs.OBSTACLES["chromium"]() == "no playwright"


def test_blocked_calls_fail_and_others_return_or_raise():
    with pytest.raises(pytest.fail.Exception, match="still blocked"):
        within(0.01, lambda: time.sleep(1))
    assert within(1, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        within(1, lambda: 1 / 0)
