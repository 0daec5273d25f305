"""dcgan-doctor's report: for people, for programs, and as an exit status."""

import json
import sys

import pytest

from dcgan import doctor
from dcgan.checks import machine, verify
from dcgan.checks.findings import Check, Finding, Verdict, examine, ok, without_paths
from dcgan.doctor import as_json, summary, table
from pipeline.errors import UserError

OK, FAIL = Verdict.OK, Verdict.FAIL


def broken():
    raise RuntimeError("first line\nsecond line")


def refuse():
    raise UserError("a.tar", "cut", "whole", "copy it again")


def silent():
    yield from ()


def lines_then_broken():
    yield ok("fine", name="one")
    broken()


def test_a_check_that_raises_is_a_fault_and_the_others_are_made():
    looks = {"bad": broken, "two": lines_then_broken, "none": silent, "set": refuse}
    checks = [Check(name, look, "1") for name, look in looks.items()]
    bad, one, two, none, refused, good = examine([*checks, Check("good", lambda: ok("1"))])
    assert [finding.verdict for finding in (bad, one, two, none)] == [FAIL, OK, FAIL, FAIL]
    assert (bad.found, one.name, two.name) == ("RuntimeError: first line", "one", "two")
    assert refused == Finding("set", FAIL, "a.tar: cut", "whole", "copy it again")
    assert good == Finding("good", OK, "1")


FINE = Finding("long name", OK, "1", "2")
UNSEEN = Finding("b", Verdict.NOT_CHECKED, "no CUDA device", "all")
BAD = Finding("c", FAIL, "2", "1", "mend it")


def test_a_finding_takes_from_its_check_what_it_leaves_open():
    checks = [
        Check("a", lambda: ok("1"), "2"),
        Check("b", lambda: ok("1", "3", name="c"), "2"),
        Check("b", broken, "all", obstacle="no CUDA device"),
    ]
    found = [Finding("a", OK, "1", "2"), Finding("c", OK, "1", "3"), UNSEEN]
    assert list(examine(checks)) == found


def test_what_was_not_checked_never_counts_as_passed():
    assert summary([UNSEEN]).startswith("0 ok, 0 warning, 0 FAIL, 1 not checked: nothing that was")
    report = as_json([FINE, UNSEEN], {}, True)
    assert report["counts"] == {"ok": 1, "warning": 0, "FAIL": 0, "not checked": 1}


def test_columns_stand_below_each_other():
    first, second, third, remedy = table([FINE, UNSEEN, BAD]).splitlines()
    assert first.index("wanted: 2") == second.index("wanted: all") == third.index("wanted: 1")
    assert second.split() == ["b", "not", "checked", "no", "CUDA", "device", "wanted:", "all"]
    assert remedy.strip() == "→ mend it"


def test_paths_of_this_machine_are_shortened_but_for_the_users_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = f"/opt/some/lib/libx.so: no; {tmp_path}/a b/c.tar; /data/me/set/shard.tar; 1/2; https://a.b/c/d"
    shown = without_paths(text, ["/data/me/set"])
    assert "/data/me/set/shard.tar" in shown
    assert "…/libx.so" in shown
    assert "https://a.b/c/d" in shown
    assert "/opt" not in shown
    assert str(tmp_path) not in shown


def run(monkeypatch, capsys, *words, checks=()):
    monkeypatch.setattr(sys, "argv", ["dcgan-doctor", *words])
    monkeypatch.setattr(machine, "checks", lambda device, shards: list(checks))
    monkeypatch.setattr(verify, "checks", lambda device, say: [Check("deep", lambda: BAD)])
    with pytest.raises(SystemExit) as end:
        doctor.main()
    return end.value.code, *capsys.readouterr()


GOOD, SKIPPED, BROKEN = (
    Check("a", lambda: ok("1×2")),
    Check("b", lambda: UNSEEN),
    Check("x", broken),
)


@pytest.mark.parametrize(
    ("words", "checks", "status"),
    [
        ([], [GOOD, SKIPPED], 0),
        ([], [BROKEN, GOOD], 1),
        (["--verify"], [GOOD], 1),
    ],
)
def test_the_exit_status(monkeypatch, capsys, words, checks, status):
    code, out, _ = run(monkeypatch, capsys, *words, checks=checks)
    assert code == status
    assert ("something is wrong" in out.splitlines()[-1]) == bool(status)


@pytest.mark.parametrize("place", ["-", "report.json"])
def test_the_report_for_programs(monkeypatch, capsys, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    words = ["--json", place, "--verify", "--device", "cpu"]
    code, out, err = run(monkeypatch, capsys, *words, checks=[GOOD, SKIPPED])
    report = json.loads(out if place == "-" else (tmp_path / place).read_text())
    assert "something is wrong" in (err if place == "-" else out)
    assert out.isascii() or place != "-"  # whatever the locale, and no escapes but JSON's
    assert (code, report["verdict"], report["verified"]) == (1, "FAIL", True)
    assert [finding["verdict"] for finding in report["findings"]] == ["ok", "not checked", "FAIL"]
    assert set(report["findings"][0]) == {"name", "verdict", "found", "wanted", "remedy"}
    assert report["environment"]["device"] == "cpu"
    assert "command" not in report["environment"]
    assert sys.prefix not in json.dumps(report)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "gpu"], "--device gpu"),
        (["--json", "nowhere/x.json"], "no folder nowhere"),
        (["--json", "."], "a folder"),
    ],
)
def test_wrong_options_are_refused_in_four_parts(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out) == (1, "")
    assert said in err
    assert all(part in err for part in ("found", "wanted", "do  "))


def test_where_torch_does_not_load_the_rest_is_told(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "why_no_torch", lambda: "OSError: libcudart.so.13: none")
    code, out, _ = run(monkeypatch, capsys, "--verify")
    assert code == 1
    assert "libcudart.so.13: none" in out
    assert out.count("torch does not load") == 6


def test_this_machine_through_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dcgan-doctor", "--json", "r.json"])
    with pytest.raises(SystemExit) as end:
        doctor.main()
    report = json.loads((tmp_path / "r.json").read_text())
    assert end.value.code == (1 if report["counts"]["FAIL"] else 0), capsys.readouterr()
    assert len(report["findings"]) >= 12
    assert str(tmp_path) not in json.dumps(report)
    assert report["findings"][-1]["verdict"] == "not checked"
