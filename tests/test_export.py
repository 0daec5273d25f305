"""`dcgan-export`: what is in the folder, and that it is whole or absent."""

import io
import json
import os
import re
import shutil
import struct
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

import dcgan.exporting.folder as exporting
from dcgan.export import export
from dcgan.exporting.onnx_net import Difference
from dcgan.nets.models import Generator
from dcgan.nets.weights import load_generator, save_weights
from dcgan.report import write_page
from dcgan.reporting import page as report_page
from dcgan.rundir.folder import RunFolder
from dcgan.sample import sample
from dcgan.sampling.generate import generate, latents
from dcgan.sampling.labels import labels_of
from pipeline.errors import UserError
from pipeline.files import file_digest
from pipeline.images.labels import LabelSpace
from tests.report_runs import metric_of, write_lines, write_run
from tests.running import assert_four_parts, cells, contents
from tests.sample_runs import SIDE, pixels
from tests.test_generate import NZ, trained

ALL = {"netG.safetensors", "config.json", "netG.onnx", "samples.png", "README.md"}

HOSTILE = (
    "x`|\n---\nlicense: evil\n# h\n<script>alert(1)</script>[a](http://x.y) ![i](j) www.x.y a@b.c"
    " \u202e\x1b[31m &lt;b&gt; $x$"
)
NAMES = (HOSTILE, "Smiling")
ROWS = ("10", "11", "01")


def no_runtime(folder: Path | None) -> None:
    raise UserError("--web-runtime", "no onnxruntime-web", "it", "npm install it")


def playground(**changes):
    """Stands for the page's module."""
    named = {"find_web_runtime": no_runtime, "playground_page": lambda *_: "<p>page</p>"}
    return SimpleNamespace(**(named | changes))


@pytest.fixture(autouse=True)
def without_page(monkeypatch):
    monkeypatch.setitem(sys.modules, "dcgan.exporting.playground", playground())


def make_run(path: Path, labels: LabelSpace | None = None) -> RunFolder:
    """A finished run of tiny nets, whose average is another net than the one as trained."""
    kept = labels and {"kind": labels.kind, "names": labels.names, "rows": ROWS}
    run = write_run(path, config={"netG": "/home/me/start.pt", "labels": kept, "augment": "diff"})
    net = trained(SIDE, 4)
    if labels is not None:
        net = Generator(SIDE, 6, 4, labels=labels)
        torch.nn.init.normal_(net.get_parameter("embedding.attributes"))
    save_weights(net, run.generator)
    with torch.no_grad():
        net.get_parameter("main.0.weight").mul_(0.5)
    save_weights(net, run.generator_average)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and one with attributes and hostile words wherever words can be, both exported."""
    folder = tmp_path_factory.mktemp("runs")
    plain = make_run(folder / "plain")
    odd = make_run(folder / HOSTILE.replace("/", ""), LabelSpace("attributes", NAMES))
    config = json.loads(odd.config.read_text())
    odd.config.write_text(json.dumps(config | {"fit": HOSTILE, "batch_size": HOSTILE}))
    odd.log.write_text(f"Training broke off: {HOSTILE}")
    words = dict.fromkeys(("metric", "recipe", "extractor", "label"), HOSTILE)
    write_lines(odd.metrics, [metric_of(1920, 3.0, net="netG.pt", **words)])
    digest = "ab" * 32
    fid = metric_of(1920, 7.5, metric="fid", recipe="r 2", extractor="V3", digest=digest, n=77)
    other = metric_of(1920, 99.5, net="netG.pt")
    write_lines(plain.metrics, [metric_of(960, 55.5), metric_of(1920, 18.5), fid, other])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dcgan.exporting.playground", playground())
        said = io.StringIO()
        with redirect_stdout(said):
            export(run=plain.path, data_name="owner/faces")
            export(run=odd.path, data_name=HOSTILE, data_license=HOSTILE, raw_net=True)
    return SimpleNamespace(plain=plain, odd=odd, said=said.getvalue())


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the plain run, not exported."""
    shutil.copytree(runs.plain.path, tmp_path / "run", ignore=lambda *_: ["export"])
    return RunFolder(tmp_path / "run")


@pytest.fixture
def quick(monkeypatch):
    """Without what takes seconds."""

    def write(path: Path, net: Generator) -> Difference:
        path.write_bytes(b"onnx")
        return Difference(0.0, 0)

    monkeypatch.setattr(exporting, "_write_onnx", write)


# What is in it


def test_it_stands_for_itself(runs, tmp_path, monkeypatch):
    folder = shutil.copytree(runs.plain.export, tmp_path / "elsewhere")
    assert set(contents(folder)) == ALL
    assert os.environ["ORT_DISABLE_TELEMETRY"], "onnxruntime would report its use"
    assert b".py" not in (folder / "netG.onnx").read_bytes(), "where somebody's files are"
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("software").startswith("dcgan-shards ")
    assert config == {
        "model_type": "dcgan-generator",
        "format": 1,
        "image_size": SIDE,
        "channels": 3,
        "nz": NZ,
        "ngf": 4,
        "labels": None,
    }
    expected = load_generator(runs.plain.generator_average).state_dict()
    stored = load_file(folder / "netG.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    noise = latents(range(64), NZ)
    drawn = generate(load_generator(folder), noise).numpy()
    assert np.array_equal(cells(folder / "samples.png", SIDE), drawn)
    # What the card tells to do, where nothing else is
    monkeypatch.chdir(folder)
    first, onnx, bare = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    names: dict[str, dict[str, object]] = {"first": {}, "onnx": {}, "bare": {}}
    for code, space in zip((first, onnx, bare), names.values(), strict=True):
        exec(code, space)
    assert np.array_equal(pixels(Path("../image.png")), drawn[0])
    assert np.asarray(names["onnx"]["pixels"]).shape == (4, SIDE, SIDE, 3)
    net = names["bare"]["net"]
    assert isinstance(net, torch.nn.Module)
    with torch.no_grad():
        assert torch.allclose(net(noise), load_generator(".")(noise), atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_samples_of_the_folder_are_those_of_the_run(runs, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, raw = getattr(runs, name), name == "odd"
    shutil.copytree(run.export, "moved")
    label = {"label": f"{HOSTILE}=1"} if raw else {}
    for net, more in ((run.path, {"raw_net": raw}), (Path("moved"), {})):
        sample(net=net, seeds="0-5", each=Path(f"each-{net.name}"), device="cpu", **label, **more)
    drawn = {path.name: path for path in Path("each-moved").iterdir()}
    assert len(drawn) == 6
    for file, path in drawn.items():
        assert np.array_equal(pixels(path), pixels(Path(f"each-{run.path.name}") / file))
    with pytest.raises(UserError, match="--raw-net"):
        sample(net=Path("moved"), raw_net=True, out=Path("g.png"), device="cpu")


def test_a_conditional_net_takes_its_labels_along(runs, tmp_path, monkeypatch):
    net = load_generator(shutil.copytree(runs.odd.export, tmp_path / "elsewhere"))
    assert net.labels == LabelSpace("attributes", NAMES)
    assert net.usual_labels is not None
    assert net.usual_labels.tolist() == [[1, 0], [1, 1], [0, 1]]
    noise, given = latents(range(5), 6), labels_of(net, range(5))
    assert given is not None
    labels = torch.stack([*given])
    session = onnxruntime.InferenceSession(runs.odd.export / "netG.onnx")
    inputs = {"latent": noise.flatten(1).numpy(), "labels": labels.numpy()}
    (found,) = session.run(["pixels"], inputs)
    assert np.abs(found.astype(int) - generate(net, noise, labels).numpy()).max() <= 1
    monkeypatch.chdir(tmp_path / "elsewhere")
    codes = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        exec(code, {})


def test_a_hubs_cache_has_links_to_files_elsewhere(runs, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(runs.odd.export.iterdir()):
        blob = shutil.copy(path, tmp_path / str(number))
        (tmp_path / "snapshot" / path.name).symlink_to(blob)
    net = load_generator(tmp_path / "snapshot")
    assert net.labels is not None
    assert net.labels.names == NAMES


# The card


def front_matter(card: str) -> tuple[dict[str, object], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_card_says_what_the_run_knows(runs):
    head, body = front_matter((runs.plain.export / "README.md").read_text())
    assert head == {
        "license": "unknown",
        "library_name": "dcgan-shards",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["dcgan", "gan"],
        "datasets": ["owner/faces"],
    }
    assert "Real images seen: 1,920, in batches of 16" in body
    assert "Licence of the data: not stated" in body
    assert "--augment diff" in body
    assert "--netG start.pt" in body  # and nobody's folders
    assert "not ended" not in body
    assert "| FID | 7.500 | 4.000 | 77 | 1,920 |" in body
    assert f"- FID: r 2; V3, digest {'ab' * 32}\n" in body
    assert "| SWD | 18.50 |" in body
    assert not {"55.50", "99.50"} & set(body.split())
    for name in ALL - {"README.md"}:
        assert f"| {name} | {file_digest(runs.plain.export / name)} |" in body
    assert re.search(r"differ by at most \d\.\de-\d\d, and the pixels by [01] of 255 levels", body)
    assert f"upload   hf upload USER/NAME {runs.plain.export}\n" in runs.said


def test_hostile_words_stay_words(runs):
    text = (runs.odd.export / "README.md").read_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    head, body = front_matter(text)
    assert set(head) == {"license", "library_name", "pipeline_tag", "tags"}
    assert head["license"] == "unknown"
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
    tags = set(re.findall(r"<(\w+)", page))
    table = {"table", "thead", "tbody", "tr", "th", "td"}
    assert tags <= {"h1", "h2", "p", "img", "ul", "li", "pre", "code", "strong", *table}
    assert re.findall(r"<img[^>]*>", page) == ['<img src="samples.png" alt="Samples" />']
    words = r"x`|\n---\nlicense: evil\n# h\n&lt;script&gt;alert(1)&lt;/script&gt;[a](http://x.y)"
    # heading, labels, data set, its licence, batch, two options, two cells, what a metric is, its
    # recipe and extractor, a label in the code, and two words of the command
    assert page.count(words) == 15
    assert [row.count("</td>") for row in page.split("<tr>") if "</td>" in row] == [6, 2, 2, 2, 2]
    outside = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\):/|www\.|(?<!\\)@", outside)  # which GitHub makes links of
    assert "had not ended" in body


# Whole or absent


def refusal(*said: str, **options) -> UserError:
    before = contents(options["run"].parent), {*options["run"].parent.rglob("*.partial")}
    with pytest.raises(UserError) as error:
        export(**options)
    assert_four_parts(error.value, *said)
    assert (contents(options["run"].parent), {*options["run"].parent.rglob("*.partial")}) == before
    return error.value


@pytest.mark.usefixtures("quick")
def test_an_earlier_export_is_replaced_as_a_whole(run, monkeypatch):
    export(run=run.path)
    first = contents(run.export)
    (run.path / "export.partial").mkdir()  # of one that was killed
    (run.path / "export.partial" / "config.json.partial").touch()
    export(run=run.path)
    (run.path / "export.partial").mkdir()  # of one that was killed later
    shutil.copy(run.export / "config.json", run.path / "export.partial")
    (run.path / "export.partial" / "netG.onnx.partial").touch()
    export(run=run.path, raw_net=True)
    second = contents(run.export)
    assert first.keys() == second.keys() == ALL
    assert first["netG.safetensors"] != second["netG.safetensors"]
    assert not [path for path in run.path.iterdir() if path.name.startswith("export.")]
    # Killed between the two renames, and then without room
    run.export.rename(run.path / "export.earlier")

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "card", full)
    with pytest.raises(UserError, match="No space left") as error:
        export(run=run.path)
    assert_four_parts(error.value, str(run.export), "--out")
    assert contents(run.export) == second
    refusal("No space left", run=run.path)
    monkeypatch.setattr(exporting, "card", lambda *_: "new")
    rename = Path.rename

    def stuck(path: Path, target: Path) -> Path:
        if path.name == "export.partial":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stuck)
    refusal("Input/output error", run=run.path)


@pytest.mark.usefixtures("quick")
def test_what_is_not_ours_stays(run, tmp_path, monkeypatch):
    for name, there in (("mine", "notes.txt"), ("other", "config.json"), ("card", "README.md")):
        (tmp_path / name).mkdir()
        (tmp_path / name / there).write_text("{}")
    (tmp_path / "file").touch()
    found = {"mine": "notes.txt", "other": "config.json", "card": "README.md", "file": "a file"}
    for name, there in found.items():
        refusal(f"--out {tmp_path / name}", there, run=run.path, out=tmp_path / name)
    for ending in (".earlier", ".partial"):  # what ours are called while they are written
        beside = tmp_path / f"new{ending}"
        beside.mkdir()
        (beside / "thesis.txt").touch()
        refusal("thesis.txt", run=run.path, out=tmp_path / "new")
        shutil.rmtree(beside)
    refusal("env.json", run=run.path, out=run.path)
    refusal("a folder of the run", run=run.path, out=run.nets)
    monkeypatch.chdir(run.export.parent)
    refusal("started in", run=run.path, out=Path())
    export(run=run.path, out=tmp_path / "deep" / "new")
    assert set(contents(tmp_path / "deep" / "new")) == ALL
    (tmp_path / "deep" / "new" / "LICENSE").touch()
    refusal("LICENSE", run=run.path, out=tmp_path / "deep" / "new")
    with pytest.raises(UserError, match="a folder of dcgan-export"):
        RunFolder.open(tmp_path / "deep" / "new")
    with pytest.raises(UserError, match="a run to go on with"):
        RunFolder.at(str(tmp_path / "deep" / "new"))


def test_one_writes_at_a_time_and_what_came_meanwhile_stays(run, monkeypatch):
    def meanwhile(path: Path, net: Generator) -> Difference:
        with pytest.raises(UserError, match="another dcgan-export"):
            export(run=run.path)
        run.export.mkdir()
        (run.export / "LICENSE").touch()
        return Difference(0.0, 0)

    monkeypatch.setattr(exporting, "_write_onnx", meanwhile)
    with pytest.raises(UserError, match="LICENSE"):
        export(run=run.path)
    assert [*contents(run.export)] == ["LICENSE"]
    assert not [path for path in run.path.iterdir() if "export." in path.name]


def test_what_cannot_be_exported(run, monkeypatch):
    refusal("no config.json", run=run.checkpoints.parent / "samples")
    refusal("--license", "CC BY", "cc-by-4.0", run=run.path, license="CC BY")
    monkeypatch.setattr(exporting, "to_onnx", lambda net: b"")
    refusal("netG.onnx", "onnxruntime", "torch", run=run.path)
    monkeypatch.setattr(exporting, "difference", lambda *_: Difference(0.02, 2))
    refusal("2 of 255", run=run.path)
    with torch.no_grad():
        net = trained(SIDE, 4)
        net.get_parameter("main.0.weight")[0, 0, 0, 0] = float("nan")
    save_weights(net, run.generator)
    refusal("not finite", run=run.path, raw_net=True)
    run.generator.unlink()
    run.generator_average.unlink()
    refusal("no netG.pt", "first checkpoint", run=run.path)
    for name in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            refusal(f"no package {name}", "pip install 'dcgan-shards[export]'", run=run.path)


@pytest.mark.usefixtures("quick")
def test_a_page_where_there_is_what_it_needs(run, monkeypatch, capsys, tmp_path):
    refusal("--web-runtime", "npm install", run=run.path, web_runtime=tmp_path)
    export(run=run.path)
    assert "npm install it" in capsys.readouterr().out
    stand_in = playground(find_web_runtime=lambda folder: folder)
    monkeypatch.setitem(sys.modules, "dcgan.exporting.playground", stand_in)
    export(run=run.path, web_runtime=tmp_path)
    assert set(contents(run.export)) == {*ALL, "playground.html"}
    assert "npm install" not in capsys.readouterr().out
    assert "| playground.html |" in (run.export / "README.md").read_text()
    # The report leads to it
    monkeypatch.setattr(report_page, "plotly_script", lambda: "")
    odd = run.path.rename(tmp_path / 'a"><script>')
    for page, link in (
        (odd / "report.html", "export/playground.html"),
        (tmp_path / "r.html", "a%22%3E%3Cscript%3E/export/playground.html"),
    ):
        write_page([odd], page)
        assert re.findall('<p><a href="([^"]*)"', page.read_text()) == [link]
    shutil.rmtree(odd / "export")
    write_page([odd], odd / "report.html")
    assert "playground" not in (odd / "report.html").read_text()


# Safetensors


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def test_hostile_safetensors_are_refused(runs, tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    whole = (runs.plain.export / "netG.safetensors").read_bytes()
    huge = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    for data in (
        b"",
        whole[:-1],
        whole[:200],
        struct.pack("<Q", 1 << 62),
        header(a=huge),
        b"{" * 99,
    ):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            load_generator(path)
        assert_four_parts(error.value, str(path), "safetensors refuses")
    state = load_file(runs.plain.export / "netG.safetensors")
    save_file(state | {"main.0.weight": state["main.0.weight"] * float("nan")}, path)
    with pytest.raises(UserError, match="not finite"):
        load_generator(path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="another net"):
        load_generator(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError) as error:
        load_generator(path)
    assert_four_parts(error.value, "pip install 'dcgan-shards[export]'")


def test_a_hostile_config_names_no_labels(runs, tmp_path):
    folder = shutil.copytree(runs.odd.export, tmp_path / "odd")
    for labels in (None, 7, {"kind": "attributes", "names": ["a"] * 2, "rows": ["01"]}):
        (folder / "config.json").write_text(json.dumps({"labels": labels}))
        net = load_generator(folder)
        assert net.labels is not None
        assert net.labels.names == ("0", "1")
    (folder / "config.json").write_bytes(os.urandom(9))
    with pytest.raises(UserError) as error:
        load_generator(folder)
    assert_four_parts(error.value, "config.json")
