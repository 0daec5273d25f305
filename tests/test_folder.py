"""The run folder: where it goes, and that what stands there already is left alone."""

import json

import pytest

from dcgan.rundir.folder import RunFolder, append_line, read_json, read_lines
from pipeline.errors import UserError
from tests.running import assert_four_parts, contents


@pytest.mark.parametrize(
    ("standing", "number"),
    [
        ([], "0001"),
        (["0001", "0002"], "0003"),
        (["0002", "0009"], "0010"),  # gaps stay: the newest run has the highest number
        (["9999"], "10000"),
        (["mine", "0001-copy", ".tmp"], "0001"),
    ],
)
def test_runs_without_a_name_are_numbered(tmp_path, monkeypatch, standing, number):
    monkeypatch.chdir(tmp_path)
    for name in standing:
        (tmp_path / "runs" / name).mkdir(parents=True)
    run = RunFolder.at(None)
    assert not run.path.exists()
    run.make()
    assert run.path.as_posix() == f"runs/{number}"
    assert (tmp_path / "runs" / number / "samples").is_dir()
    assert (tmp_path / "runs" / number / "nets").is_dir()
    assert (tmp_path / "runs" / number / "checkpoints").is_dir()


def test_an_empty_folder_is_taken(tmp_path):
    assert RunFolder.at(str(tmp_path)).path == tmp_path


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as refusal:
        RunFolder.at(str(tmp_path))
    assert_four_parts(refusal.value, f"--run {tmp_path}", "a folder with other files in it")
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_in_the_way_is_refused_and_left_alone(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as refusal:
        RunFolder.at(str(tmp_path / "file") + below).make()
    assert_four_parts(refusal.value, f"--run {tmp_path}/file{below}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_named_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(UserError) as refusal:
        RunFolder.at(None).make()
    assert_four_parts(refusal.value, "--run runs")


def test_a_line_is_not_glued_to_one_that_was_cut_off(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"nimg": 1})
    with path.open("a") as file:
        file.write('{"nimg": 2, "va')
    append_line(path, {"nimg": 3})
    append_line(path, {"nimg": 4})
    assert [line["nimg"] for line in read_lines(path)] == [1, 3, 4]
    assert path.read_text().count("\n") == 4


def test_names_sort_by_the_images_seen(tmp_path):
    run = RunFolder(tmp_path)
    for name in (run.fakes, run.generator_at, run.discriminator_at):
        paths = [name(nimg) for nimg in (0, 9, 128, 6_400_000, 202_599_000)]
        assert paths == sorted(paths)
    assert run.fakes(64).relative_to(tmp_path).as_posix() == "samples/fakes-000000064.png"
    assert run.generator_at(64).relative_to(tmp_path).as_posix() == "nets/netG-000000064.pt"
    assert run.discriminator_at(64).relative_to(tmp_path).as_posix() == "nets/netD-000000064.pt"


def test_what_is_no_run_leads_to_the_one_that_is_meant(tmp_path):
    for number in ("0001", "0002"):
        (tmp_path / "runs" / number).mkdir(parents=True)
        (tmp_path / "runs" / number / "config.json").write_text("{}")
    for path, found, remedy in (
        (tmp_path / "nowhere", "no such folder", "check the path"),
        (tmp_path, "no config.json in it", "check the path"),
        (tmp_path / "runs", "no config.json in it", str(tmp_path / "runs/0002")),
        (tmp_path / "runs/0001/config.json", "no such folder", "check the path"),
    ):
        with pytest.raises(UserError) as error:
            RunFolder.open(path)
        assert (error.value.where, error.value.found) == (str(path), found)
        assert error.value.remedy.endswith(remedy)


def test_a_run_without_a_checkpoint_has_no_net_yet(tmp_path):
    run = RunFolder(tmp_path)
    for raw in (False, True):
        with pytest.raises(UserError) as error:
            run.generator_to_sample(raw)
        assert_four_parts(error.value, f"{tmp_path}\n", "no netG.pt", "first checkpoint")
    run.generator_average.touch()
    assert run.generator_to_sample() == run.generator_average
    run.generator.touch()
    assert run.generator_to_sample(raw=True) == run.generator


def test_brackets_in_names_are_no_lists():
    names = [f'[{number}] "{{x" \\' for number in range(99)]
    assert read_json(json.dumps({"names": names})) == {"names": names}
    for text in ("[" * 65 + "]" * 65, '{"a": ' * 65 + "1" + "}" * 65, '"[[[' * 99 + "[" * 65):
        with pytest.raises(ValueError, match="lists"):
            read_json(text)


def test_the_nets_have_seen_what_the_newest_checkpoint_had(tmp_path):
    run = RunFolder(tmp_path)
    assert run.nimg_of_nets() == 0
    for nimg in (64, 128, 96):
        append_line(run.stats, {"step": nimg // 8, "nimg": nimg})
    assert run.nimg_of_nets() == 128
    run.checkpoints.mkdir()
    for nimg in (8, 96):
        (run.checkpoints / f"{nimg:09d}.json").touch()
    assert run.nimg_of_nets() == 96, "the run trains on, and its nets are those of a checkpoint"
