"""Settings that must agree with one another, which no linter knows."""

import re
import tomllib

import pytest
import yaml

from dcgan.metrics import reference_cache as kept
from dcgan.training import checkpoint
from pipeline.shards import manifest, tar
from tests.running import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_a_rule_that_is_switched_off_says_why():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (table,) = re.findall(r"^ignore = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    lines = table.splitlines()
    assert len(lines) == len(SETTINGS["tool"]["ruff"]["lint"]["ignore"])
    unexplained = [line for line in lines if "#" not in line]
    assert not [line for line in unexplained if not line.strip().startswith('"RUF00')]


def test_the_workflow_is_the_script_on_the_oldest_python_and_a_newer_one():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["ci"]
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    versions = job["strategy"]["matrix"]["python"]
    assert SETTINGS["project"]["requires-python"] == f">={versions[0]}"
    assert versions == ["3.11", "3.12"]
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert "secrets" not in str(workflow)


def test_what_runs_before_a_commit_is_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = hooks["repos"]
    assert local["repo"] == "local"  # the tools of the environment: one version of each
    before = {hook["entry"] for hook in local["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    for line in recipe[1].splitlines():
        assert line.strip().replace("$(BIN)", ".venv/bin") in before
    images = next(hook for hook in local["hooks"] if hook["language"] == "fail")
    refused = re.compile(images["files"])
    for name in ("celeba/000001.jpg", "a.tar", "runs/1/netG.pt", "shards/samples.csv", "x.PNG"):
        assert refused.search(name)
        assert not re.search(images["exclude"], name)
    for name in ("docs/img/fakes.png", "tests/goldens/run-of-state-2/checkpoints/000000080.pt"):
        assert refused.search(name)
        assert re.search(images["exclude"], name)
    assert not refused.search("dcgan/train.py")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/releasing.md"])
def test_what_contributors_are_told_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|pipeline|dcgan|tools|docs)/[\w./-]+\.\w+)`", text))
    assert len(named) >= 2
    assert not {name for name in named if not (ROOT / name).is_file()}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    asked = {word for line in re.findall(r"`make ([\w -]+)`", text) for word in line.split()}
    assert {"test"} < asked
    assert asked <= targets


def test_versions_of_formats_are_those_in_the_table():
    text = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines()]
    told = {name: today for name, _, today in (row for row in rows if len(row) == 3)}
    assert told["shard set"] == str(manifest.FORMAT)
    assert told["index of a shard"] == tar.VERSION
    assert told["checkpoint"] == str(checkpoint.VERSION)
    assert told["kept references of `dcgan-evaluate`"] == str(kept.FORMAT)
