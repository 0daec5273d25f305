"""Pages in Chromium, watched: they say nothing, and ask for nothing beside themselves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.needs import chromium, require


@dataclass
class Visit:
    """A page that is open, and what went on behind it."""

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def until(self, expression: str) -> None:
        """Wait until it holds; playwright's own waiting is what the page's policy forbids."""
        ends = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < ends, f"never came: {expression}"
            time.sleep(0.02)

    def check(self) -> None:
        """Nothing was said, and the page's file is all that was asked for."""
        assert not self.said, self.said
        asked = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        assert asked == self.requests[:1], asked
        assert asked[0].startswith("file:")


V = TypeVar("V", bound=Visit)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium; skips where there is none."""
    require("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int, kind: type[V]) -> Iterator[V]:
    """A page; see `Visit.check` for what must hold at the end."""
    size = {"width": width, "height": 800}
    with browser.new_context(viewport=size, color_scheme="light") as context:
        seen = kind(context.new_page())
        seen.page.goto(path.as_uri())
        yield seen
        seen.check()
