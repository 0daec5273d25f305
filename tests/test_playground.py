"""The page that draws: what it holds, and in Chromium the pictures that torch draws."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.exporting import playground
from dcgan.exporting.onnx_net import Difference, to_onnx
from dcgan.exporting.playground import MODULE, WASM, WebRuntime, find_web_runtime, playground_page
from dcgan.nets.models import Generator, init_weights
from dcgan.nets.weights import examples_of
from dcgan.options import RunLabels
from dcgan.sampling.generate import generate, latents, slerp
from dcgan.sampling.labels import Label
from pipeline.errors import UserError, plain
from pipeline.files import file_digest
from tests.browsing import Visit, open_browser, opened
from tests.needs import require

SIDE, NZ = 16, 17
HOSTILE = "</script><img src=x onerror=document.title='broken'>{{ 7 * 7 }}'\"\u202e"
NAME = plain(HOSTILE)
LABELS = RunLabels(kind="attributes", names=("Bright", HOSTILE), rows=("01", "11", "10"))
CLASSES = RunLabels(kind="classes", names=("a", "b", "c"))
STUB = WebRuntime(b"module", b"wasm")
STAGE = """(() => {
  const copy = document.createElement("canvas").getContext("2d");
  copy.drawImage(document.getElementById("stage"), 0, 0);
  return [...copy.getImageData(0, 0, 16, 16).data].filter((_, place) => place % 4 < 3);
})()"""
"""Its pixels."""


@pytest.fixture(scope="module")
def net() -> Generator:
    net = Generator(SIDE, NZ, 4, labels=LABELS.space)
    draw = torch.Generator().manual_seed(3)
    init_weights(net, draw)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(5)  # as far as ±1: a level is soon lost or won
        for _ in range(3):
            net(torch.randn(8, NZ, 1, 1, generator=draw), torch.eye(2)[torch.arange(8) % 2])
    return net.eval()


@pytest.fixture(scope="module")
def model(net: Generator) -> bytes:
    return to_onnx(net)


# Without a browser


def test_a_runtime_is_taken_where_npm_put_it_and_as_it_was_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "dcgan-shards" / "web"
    with pytest.raises(UserError) as absent:
        find_web_runtime(None)
    assert absent.value.remedy == f"npm install --prefix {cache} onnxruntime-web@1.30.0"
    dist = tmp_path / "my web" / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in (MODULE, WASM):
        (dist / name).write_bytes(b"of another version")
    with pytest.raises(
        UserError, match=r"(?s)--web-runtime .*found +another .*1\.30\.0.*'.*my web'"
    ):
        find_web_runtime(tmp_path / "my web")
    digest = file_digest(dist / MODULE)
    monkeypatch.setattr(playground, "DIGESTS", dict.fromkeys((MODULE, WASM), digest))
    for folder in (tmp_path / "my web", dist.parent):
        assert find_web_runtime(folder).wasm == b"of another version"


def test_names_are_text_in_the_page(net: Generator, model: bytes) -> None:
    page = playground_page(model, net, LABELS, HOSTILE, STUB)
    assert "<img" not in page
    assert "\u202e" not in page
    assert page.count("</script>") == 6
    assert page.count("{{ 7 * 7 }}") == 4  # heading, title, label, and in the script's facts
    assert "MIT License" in page
    assert "with weights in half precision the net differs" in page
    assert len(page) < 150_000


def test_weights_stay_whole_where_halves_would_be_seen(
    net: Generator, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def difference(drawn: bytes, net: Generator) -> Difference:
        return Difference(0.0, 0 if drawn == model else 2)

    monkeypatch.setattr(playground, "difference", difference)
    page = playground_page(model, net, LABELS, "", STUB)
    assert "in single precision the net differs from torch's on 64 seeds by 0 levels" in page


# In Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


def asset(name: str) -> str:
    return (Path(playground.__file__).parent / "assets" / name).read_text()


def test_normals_are_torchs(browser: Any) -> None:
    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2**63 - 1, (500,), generator=random).tolist()
    seeds = [0, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, *range(1, 495), *drawn]
    page = browser.new_page()
    page.add_script_tag(content=asset("normals.js"))
    for nz in (1, 5, 15, 16, 17, 100, 128):
        text = page.evaluate(
            "([seeds, nz]) => JSON.stringify(seeds.map((seed) => [...randn(seed, nz)]))",
            [[str(seed) for seed in seeds], nz],
        )
        wanted = latents(seeds, nz).flatten(1).numpy()
        assert wanted.shape == (1000, nz)
        # Measured: 0 below 16, and 4.8e-7 from there on: torch's vectorised logarithms and sines
        np.testing.assert_allclose(json.loads(text), wanted, rtol=0, atol=1e-5)
    page.close()


def test_labels_are_those_of_samples(browser: Any) -> None:
    choose = (
        "(each) => { chooseLabels(each); return [0n, 1n, 5n, 9n].map((s) => [...labelOf(s)]); }"
    )
    mix = "(w) => { chooseLabels([]); return [...combine([0n, 1n, 2n].map(pointOf), w).label]; }"
    for labels, cases in (LABELS, [{}, {0: 1}, {0: 0, 1: 0}]), (CLASSES, [{2: 1}]):
        facts = {"nz": NZ, "labels": {**labels.model_dump(), "names": ["x"] * len(labels.names)}}
        page = browser.new_page()
        page.set_content(f"<script id=facts type=text/plain>{json.dumps(facts)}</script>")
        page.add_script_tag(content=asset("normals.js") + asset("points.js"))
        for values in cases:
            label = Label(labels.space, values)
            rows = [label.row(seed, examples_of(labels)).tolist() for seed in (0, 1, 5, 9)]
            assert page.evaluate(choose, [*map(list, values.items())]) == rows
    # Mixed, classes are shares that add up to 1
    assert page.evaluate(mix, [1, -1, 1]) == [0.5, 0, 0.5]
    assert page.evaluate(mix, [0, 0, 1]) == [0, 0, 1]


class Playground(Visit):
    def stage(self) -> np.ndarray:
        return np.array(self.page.evaluate(STAGE), np.int64).reshape(SIDE, SIDE, 3)

    def shows(self, caption: str) -> None:
        self.until(f"document.getElementById('caption').textContent === {json.dumps(caption)}")


@pytest.fixture(scope="module")
def file(net: Generator, model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("web-runtime")
    path = tmp_path_factory.mktemp("page") / "playground.html"
    path.write_text(playground_page(model, net, LABELS, HOSTILE, find_web_runtime(None)))
    return path


def test_the_page_draws_what_torch_draws(
    browser: Any, file: Path, net: Generator, tmp_path: Path
) -> None:
    usual = examples_of(LABELS)
    assert usual is not None

    def differs(seen: Playground, latent: torch.Tensor, label: torch.Tensor) -> int:
        (image,) = generate(net, latent.reshape(1, NZ, 1, 1), label[None])
        return int(np.abs(seen.stage() - image.numpy()).max())

    def of(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return latents([seed], NZ).flatten(), usual[seed % len(usual)]

    with opened(browser, file, 390, Playground) as seen:
        page = seen.page
        seen.shows("Seed 0")
        assert seen.stage().std() > 30
        assert differs(seen, *of(0)) <= 1
        for seed in (2**32 + 5, 2**63 - 1):
            page.fill("#panel-picture .seeds", str(seed))
            seen.shows(f"Seed {seed}")
            assert differs(seen, *of(seed)) <= 1
        page.fill("#panel-picture .seeds", "-1")
        assert page.inner_text("#panel-picture .wrong") == "Type one seed, such as 17"
        assert page.is_disabled("#save")
        # A grid for the keyboard
        seen.until("document.querySelectorAll('.cell.drawn').length === 64")
        page.focus(".cell")
        for key in ("ArrowDown", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        seen.shows("Seed 6")  # in rows of five
        assert differs(seen, *of(6)) <= 1
        assert page.get_attribute(".cell[aria-pressed=true]", "aria-label") == f"Seed 6, {NAME}"
        for key, reached in ("PageDown", 70), ("PageUp", 6), ("End", 63), ("ArrowDown", 68):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.dataset.seed") == str(reached)
        page.fill("#start", "0")
        # A walk
        page.click("#tab-walk")
        for seed in (3, 12):
            page.click(f".cell[data-seed='{seed}']")
        page.evaluate("document.getElementById('walk-at').value = 39")
        page.focus("#walk-at")
        page.keyboard.press("ArrowRight")
        seen.shows("40 % of the way from seed 3 to seed 12")
        (a, of_a), (b, of_b) = of(3), of(12)
        assert differs(seen, slerp(a, b, 0.4), torch.lerp(of_a, of_b, 0.4)) <= 1
        # The paper's arithmetic
        page.click("#tab-arithmetic")
        page.click(".cell[data-seed='1']")  # out of 0,1,2
        page.click("[aria-label='Clear + C']")
        assert page.inner_text("#panel-arithmetic .wrong >> nth=2").startswith("Type at least one")
        page.click(".cell[data-seed='9']")
        seen.shows("0,2 − 3,4,5 + 9")
        page.focus(".cell[data-seed='5']")
        page.keyboard.press("2")
        for term in ("3,4", "3,4,5"):
            page.keyboard.press("Enter")
            seen.shows(f"0,2 − {term} + 9")
        page.fill("[aria-label='Seeds: + C']", "12, 14-15")
        seen.shows("0,2 − 3,4,5 + 12,14-15")
        first, second, third = (
            torch.stack([torch.cat(of(seed)) for seed in term]).mean(0)
            for term in ((0, 2), (3, 4, 5), (12, 14, 15))
        )
        latent, label = (first - second + third).split([NZ, 2])
        assert differs(seen, latent, label.clamp(0, 1)) <= 1
        # In a terminal: for one label alone
        assert not page.is_visible("#terminal")
        page.select_option("[data-label='1']", "1")
        assert not page.is_visible("#terminal"), "the other attribute differs from seed to seed"
        page.select_option("[data-label='0']", "0")
        words = shlex.split(page.inner_text("#terminal code"))
        assert words[3:] == ["0,2 - 3,4,5 + 12,14-15", f"--label=Bright=-1,{NAME}=1"]
        page.select_option("[data-label='0']", "")
        page.select_option("[data-label='1']", "")
        assert page.is_visible("#no-terminal")
        # A plane
        page.click("#tab-plane")
        page.focus("#pad")
        for key in ("ArrowRight", "Shift+ArrowUp"):
            page.keyboard.press(key)
        seen.shows("1.00 × seed 0 + 0.04 × seed 1 + 0.20 × seed 2")
        point = of(0)[0] + 0.04 * of(1)[0] + 0.2 * of(2)[0]
        assert differs(seen, point, of(0)[1]) <= 1
        # A label for all, a file, and the address
        page.click("text=Through three pictures")
        seen.shows("0.33 × seed 0 + 0.33 × seed 1 + 0.33 × seed 2")
        page.click("text=Around A")
        page.focus("#pad")
        for key in ("ArrowRight", "Shift+ArrowUp"):
            page.keyboard.press(key)
        seen.shows("1.00 × seed 0 + 0.04 × seed 1 + 0.20 × seed 2")
        page.evaluate("document.getElementById('caption').textContent = ''")
        page.select_option("[data-label='0']", "0")
        seen.shows("1.00 × seed 0 + 0.04 × seed 1 + 0.20 × seed 2")
        assert differs(seen, point, torch.tensor([0.0, 1.0])) <= 1
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "saved.png")
        assert download.value.suggested_filename == "plane-0-1-2-at-1.00_0.04_0.20-Bright=-1.png"
        with Image.open(tmp_path / "saved.png") as saved:
            assert saved.size == (4 * SIDE, 4 * SIDE)
            small = np.asarray(saved.convert("RGB"))[::4, ::4]
        assert np.array_equal(small, seen.stage())
        seen.until("location.hash.includes('labels=0')")
        # On a phone nothing scrolls sideways, and names are text
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.title().startswith("</script><img")
        assert page.locator("img").count() == 0
        assert "images a second" in page.inner_text("#status")


def test_a_browser_without_what_it_takes_is_told_so(
    browser: Any, net: Generator, model: bytes, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(playground_page(model, net, LABELS, "", STUB))
    with browser.new_context() as context:
        context.add_init_script("delete globalThis.WebAssembly")
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        assert "This browser has no WebAssembly" in page.inner_text("#trouble")
        assert page.inner_text("#status") == "Cannot draw"
