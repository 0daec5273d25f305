"""What `dcgan-train` refuses: one message in four parts, status 1, and nothing left behind."""

import shutil
import sys

import pytest
import torch

from dcgan.nets.models import Discriminator, Generator
from dcgan.train import main
from tests.running import TINY, contents, files_below, flags


@pytest.fixture
def folder(tmp_path, monkeypatch, numbered_set):
    """The current folder: a shard set in several states, weights, and a run."""
    (tmp_path / "set").symlink_to(numbered_set(40, 16).folder)
    shutil.copytree(tmp_path / "set", tmp_path / "altered")
    with (tmp_path / "altered/shard-000001.tar").open("ab") as tar:
        tar.write(b"more")
    torch.save(Generator(64, nz=8, ngf=4).state_dict(), tmp_path / "netG64.pt")
    torch.save(Discriminator(32, ndf=4).state_dict(), tmp_path / "netD.pt")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "done").mkdir()
    (tmp_path / "done/notes.txt").write_text("somebody's")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dcgan_train(monkeypatch, capsys, *words: str) -> tuple[object, str, str]:
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", ["dcgan-train", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, *capsys.readouterr()


PACK = "python tools/make_shards.py celeba/ --out"

REFUSED: list[tuple[dict[str, object], list[str]]] = [
    ({"shards": "nowhere"}, ["nowhere\n", "no such folder", f"{PACK} nowhere"]),
    ({"shards": "text.pt"}, ["text.pt\n", "a file", "make_shards.py text.pt --out shards"]),
    ({"shards": "altered"}, ["altered/shard-000001.tar\n", "bytes", f"{PACK} altered"]),
    ({"batch_size": 41}, ["--batch-size 41\n", "40 images", "--batch-size 40 or less"]),
    ({"batch_size": 0}, ["--batch-size\n", "0\n", "1 or more"]),
    ({"image_size": 50}, ["--image-size\n", "50\n", "48 or 56"]),
    ({"channels": 4}, ["--channels\n", "4\n", "1, 3", "--channels 3"]),
    ({"lr": 0}, ["--lr\n", "more than 0"]),
    ({"seed": "tomato"}, ["--seed\n", "tomato\n", "a whole number, or random"]),
    ({"device": "gpu"}, ["--device gpu\n", "unknown", "auto, cpu"]),
    ({"device": "cuda"}, ["--device cuda\n", "no such device here", "nvidia-smi"]),
    ({"netG": "nowhere.pt"}, ["--netG nowhere.pt\n", "no such file"]),
    ({"netG": "netG64.pt"}, ["--netG netG64.pt\n", "run with --image-size 64"]),
    ({"netD": "netG64.pt"}, ["--netD netG64.pt\n", "holds a Generator"]),
    ({"run": "done"}, ["--run done\n", "a folder with other files in it", "another --run"]),
    # Beyond any machine's addresses: less, a system that overcommits would try
    ({"ngf": 10**12}, ["--batch-size 8, --ngf", "not enough memory", "smaller --ngf"]),
]


@pytest.mark.parametrize(
    ("options", "said"), REFUSED, ids=[" ".join(flags(**options)) for options, _ in REFUSED]
)
def test_refused(folder, monkeypatch, capsys, options, said):
    if options.get("device") == "cuda":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = contents(folder)
    folders = {path for path in folder.rglob("*") if path.is_dir()}
    words = flags(**{"shards": "set", "max_steps": 1, **TINY, **options})
    status, out, err = dcgan_train(monkeypatch, capsys, *words)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {said[0]}")
    parts = [line.split(maxsplit=1) for line in err.splitlines()]
    assert [part[0] for part in parts] == ["error:", "found", "wanted", "do"]
    assert all(len(part) == 2 for part in parts)
    for words_said in said:
        assert words_said in err
    assert contents(folder) == before
    assert {path for path in folder.rglob("*") if path.is_dir()} == folders


@pytest.mark.parametrize(
    "words",
    ["", "--shards synthetic --colour red", "--shards synthetic --nz x"],
)
def test_what_typer_refuses_has_status_2(folder, monkeypatch, capsys, words):
    before = files_below(folder)
    status, out, err = dcgan_train(monkeypatch, capsys, *words.split())
    assert (status, out) == (2, "")
    assert "Error" in err
    assert "Traceback" not in err
    assert files_below(folder) == before


def test_the_same_options_are_taken_where_nothing_is_wrong(folder, monkeypatch, capsys):
    words = flags(**{"shards": "set", "run": "new", "max_steps": 1, "netD": "netD.pt", **TINY})
    status, out, err = dcgan_train(monkeypatch, capsys, *words)
    assert (status, err) == (0, "")
    assert "Training finished" in out
