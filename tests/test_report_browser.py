"""The report in Chromium: it draws, moves, zooms, fits a phone, and needs no network."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dcgan.report import write_page
from dcgan.rundir.folder import RunFolder
from tests.browsing import Visit, open_browser, opened
from tests.report_runs import alarm_of, metric_of, save_plain, write_lines, write_run

LEVEL = """async () => {
  const canvas = document.createElement("canvas"), image = document.getElementById("grid");
  await image.decode();
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data[0];
}"""
"""The red of the grid that is shown."""

AXIS = "document.getElementById('chart-{}').layout.xaxis.range.map(Number)"

HOSTILE = "</script><img src=x onerror=document.title='broken'><a href=http://x.invalid>x</a>"


LINK = "<a href='http://x.y'>x</a>"
"""Short enough for a legend to show whole."""


class Report(Visit):
    def level(self) -> int:
        value: int = self.page.evaluate(LEVEL)
        return value

    def legend(self, chart: str) -> list[str]:
        names: list[str] = self.page.locator(f"#chart-{chart} .legendtext").all_text_contents()
        return names

    def axis(self, chart: str) -> list[float]:
        value: list[float] = self.page.evaluate(AXIS.format(chart))
        return value


Open = Callable[..., Report]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been said or asked for."""
    with ExitStack() as visits:

        def open_(path: Path, width: int = 1000) -> Report:
            return visits.enter_context(opened(browser, path, width, Report))

        yield open_


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with everything in it, and its report."""
    run = write_run(tmp_path_factory.mktemp("report") / "faces")
    write_lines(run.metrics, [metric_of(960, 20.0), metric_of(1920, 12.0)])
    write_lines(run.alarms, [alarm_of(40)])
    save_plain(run.path / "neighbours.png", 90)
    write_page([run.path], run.report)
    return run


def test_the_slider_moves_the_picture_and_play_goes_through_all(
    visit: Open, run: RunFolder
) -> None:
    seen = visit(run.report)
    assert abs(seen.level() - 100) < 4  # the last of 40, 60, 80, 100
    seen.page.focus("#when")
    seen.page.keyboard.press("ArrowLeft")
    assert abs(seen.level() - 80) < 4
    assert seen.page.inner_text("#when-said") == "1,440 images"
    assert seen.page.get_attribute("#when", "aria-valuetext") == "1,440 images"
    assert "1,440 images" in seen.page.get_attribute("#grid", "alt")
    seen.page.keyboard.press("End")
    seen.page.click("#play")
    assert abs(seen.level() - 40) < 4
    assert seen.page.inner_text("#play") == "Pause"
    seen.until("document.getElementById('play').textContent === 'Play'")
    assert abs(seen.level() - 100) < 4


def test_every_chart_has_its_curves_and_the_first_tab_skips_to_them(
    visit: Open, run: RunFolder
) -> None:
    seen = visit(run.report)
    counts = {
        name: seen.page.locator(f"#chart-{name} .scatterlayer .trace path.js-line").count()
        for name in ("losses", "probabilities", "pace", "swd")
    }
    assert counts == {"losses": 4, "probabilities": 6, "pace": 3, "swd": 2}
    assert seen.page.locator("#chart-losses .shapelayer path").count() == 1
    legends = {name: seen.legend(name) for name in ("losses", "probabilities", "pace")}
    assert legends == {
        "losses": ["Loss_D", "Loss_G"],
        "probabilities": ["D(x)", "D(G(z)) before", "D(G(z)) after"],
        "pace": [],
    }
    seen.page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert seen.page.evaluate(f"{focused}.textContent") == "Skip to the content"
    assert seen.page.evaluate(f"{focused}.getBoundingClientRect().top >= 0")
    seen.page.keyboard.press("Enter")
    assert seen.page.evaluate(f"{focused}.id") == "content"


def test_a_drag_and_the_buttons_zoom_and_the_other_charts_follow(
    visit: Open, run: RunFolder
) -> None:
    seen = visit(run.report)
    whole = seen.axis("losses")
    area = seen.page.locator("#chart-losses .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] - 20, steps=6)
    seen.page.mouse.up()
    seen.until(f"{AXIS.format('losses')}[1] < {whole[1] * 0.7}")
    low, high = seen.axis("losses")
    assert [low, high] == pytest.approx([30, 60], abs=5)
    assert seen.axis("probabilities") == seen.axis("pace") == [low, high]
    assert seen.axis("swd")[1] > 1000  # in images, not in steps
    tools = seen.page.get_by_role("group", name="Zoom: Losses")
    tools.get_by_role("button", name="Zoom in").press("Enter")
    seen.until(f"{AXIS.format('losses')}[0] > {low + 5}")
    zoomed = seen.axis("losses")
    assert zoomed[1] - zoomed[0] == pytest.approx((high - low) / 2)
    tools.get_by_role("button", name="Later").press("Enter")
    seen.until(f"{AXIS.format('losses')}[0] > {zoomed[0] + 2}")
    tools.get_by_role("button", name="Whole run").press("Enter")
    seen.until(f"{AXIS.format('losses')}[0] < 5")
    assert seen.axis("losses") == pytest.approx(whole)


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_nothing_scrolls_sideways_on_a_phone(
    visit: Open, run: RunFolder, tmp_path: Path, which: str
) -> None:
    long = {"shards": "/a/very/long/path" * 12, "a_very_long_name_of_an_option_" * 3: "x" * 200}
    other = write_run(tmp_path / ("long-name" * 12), config=long)
    write_lines(other.metrics, [metric_of(5, 9.0, recipe="r" * 200, shards="s" * 200)])
    write_lines(other.alarms, [alarm_of(3, "m" * 200)])
    runs = [other.path] if which == "report" else [run.path, other.path]
    write_page(runs, tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", width=360)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
    edges = "[...document.querySelectorAll('main *')].map(e => e.getBoundingClientRect().right)"
    assert seen.page.evaluate(f"Math.max(...{edges})") <= 361


def test_colours_follow_the_reader(visit: Open, run: RunFolder) -> None:
    colours = """() => [getComputedStyle(document.body).backgroundColor,
      getComputedStyle(document.querySelector("#chart-losses path.js-line")).stroke,
      getComputedStyle(document.querySelector("#chart-losses .xtick text")).fill]"""
    seen = visit(run.report)
    light = ["rgb(251, 250, 248)", "rgb(0, 114, 178)", "rgb(93, 100, 109)"]
    assert seen.page.evaluate(colours) == light
    dark = ["rgb(20, 23, 26)", "rgb(63, 159, 220)", "rgb(154, 163, 173)"]
    seen.page.emulate_media(color_scheme="dark")  # at dusk, with the page open
    seen.until(f"String(({colours})()) === {json.dumps(','.join(dark))}")


def test_hostile_strings_do_nothing(visit: Open, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        odd = HOSTILE.replace("/", "∕") + name
        run = write_run(tmp_path / odd, config={HOSTILE: HOSTILE + name})
        run.environment.write_text(json.dumps({HOSTILE: HOSTILE}))
        run.log.write_text(f"Training broke off: {HOSTILE}\n")
        write_lines(run.metrics, [metric_of(n, 9.0, net=LINK, recipe=HOSTILE) for n in (1, 2)])
        write_lines(run.alarms, [alarm_of(3, HOSTILE)])
        runs.append(run.path)
    for name, which in (("two.html", runs), ("one.html", runs[:1])):
        write_page(which, tmp_path / name)
        seen = visit(tmp_path / name)
        assert "DCGAN report" in seen.page.title()
        assert seen.page.locator("img:not([src^='data:']), a[href^=http], main a").count() == 0
    assert LINK in seen.page.text_content("#chart-swd .legend")  # as it was written
    # A script that slipped through all the same would be stopped by the page's policy
    stopped = (
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
    )
    seen.page.evaluate(stopped + " document.body.append(s); }")
    assert seen.page.evaluate("window.ran") is None
    assert "Content Security Policy" in seen.said.pop()


@pytest.mark.parametrize("name", ["stats.jsonl", "samples", "all but one"])
def test_the_page_works_without_a_file(
    visit: Open, run: RunFolder, tmp_path: Path, name: str
) -> None:
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    lost = [copy.path / name] if name != "all but one" else list(copy.path.iterdir())
    for path in lost:
        path.rename(tmp_path / path.name)
    if name == "all but one":
        copy.config.write_text("{}")
    write_page([copy.path], tmp_path / "page.html")
    seen = visit(tmp_path / "page.html")
    assert seen.page.locator("section").count() == 8
    assert seen.page.locator(".absent, .notes li").count() >= 1
    charts = {"stats.jsonl": 3, "all but one": 0}.get(name, 4)
    assert seen.page.locator(".plot .main-svg:first-child").count() == charts


def test_runs_lie_over_each_other_in_colours_of_their_own(
    visit: Open, run: RunFolder, tmp_path: Path
) -> None:
    others = [write_run(tmp_path / f"run{k}", config={"lr": k / 1e4}, seed=k) for k in range(1, 7)]
    write_page([run.path, *(other.path for other in others)], tmp_path / "comparison.html")
    seen = visit(tmp_path / "comparison.html")
    lines = "[...document.querySelectorAll('#chart-losses .xy path.js-line')]"
    looks = seen.page.evaluate(
        f"{lines}.map(e => getComputedStyle(e).stroke + getComputedStyle(e).strokeDasharray)"
    )
    assert (len(looks), len(set(looks))) == (7, 7)
    assert seen.legend("losses") == ["faces", *(f"run{k}" for k in range(1, 7))]
    assert seen.page.locator("#samples img").count() == 7
    options = seen.page.locator("#options tbody tr").all_inner_texts()
    assert [row.split()[0] for row in options] == ["lr"]
