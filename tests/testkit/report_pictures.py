"""Take the pictures of the report for the documentation, from a store with made-up data.

    PYTHONPATH=tests python -m testkit.report_pictures docs/images

It needs Chromium and its chromedriver.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import orjson
from anyio import to_thread

from asyncagg.job.pipeline import run
from asyncagg.model import Window
from asyncagg.report import build_page, gather
from asyncagg.sample import samples
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore
from testkit.browser import Browser, open_browser
from testkit.scenario import Clock

__all__ = ("made_up_page",)

DAY = datetime(2025, 10, 21, tzinfo=UTC)
WINDOWS = [Window(DAY + timedelta(minutes=5) * number, 5) for number in range(1, 145)]
MISSING = {*range(37, 40), 101}
SETTINGS = Settings(window_by="name")


class _Named(MemoryStore):
    @property
    def url(self) -> str:
        return "s3://matching-out-runs"


async def made_up_page() -> bytes:
    """Return the page of half a day with a gap, a burst of errors, and late files."""
    dice = random.Random(7)
    store = _Named(Clock(DAY + timedelta(hours=12)))
    late = []
    for number, window in enumerate(WINDOWS):
        if number in MISSING:
            continue
        files = round(14 + 40 * math.sin(number / 46) ** 2 + dice.uniform(0, 9))
        bad = 0.04 if number in range(80, 86) else 0.001
        for each in samples(
            files=files, windows=[window], prefix="runs/", bad_fraction=bad, seed=number
        ):
            data = _with_errors(each.data) if each.good and number in range(80, 86) else each.data
            if dice.random() < 0.002:
                late.append((each.key, data))
            else:
                await store.put(each.key, data)
    await run(store, SETTINGS, at=WINDOWS[-1].end)
    for key, data in late:
        await store.put(key, data)
    await run(store, SETTINGS, at=WINDOWS[-1].end)
    report = await gather(store, SETTINGS, now=lambda: DAY + timedelta(hours=12, minutes=2))
    return await to_thread.run_sync(build_page, report.as_dict())


def _with_errors(data: bytes) -> bytes:
    content = orjson.loads(data)
    content["errors"] += 2
    content["total_opportunities"] += 2
    content["processing_time_seconds"] *= 2.5
    return orjson.dumps(content)


def _take(browser: Browser, target: Path, *, width: int, height: int, scheme: str) -> None:
    browser.resize(width, height)
    browser.prefer(prefers_color_scheme=scheme)
    browser.settle()
    browser.driver.save_screenshot(str(target))


def main() -> None:
    """Write the pictures into the folder that the argument names."""
    logging.disable()  # no line for each file that is bad on purpose
    folder = Path(sys.argv[1]).resolve()
    page = folder / "report.html"
    page.write_bytes(anyio.run(made_up_page))
    with open_browser() as browser:
        browser.open(page)
        for scheme in ("light", "dark"):
            target = folder / f"report-{scheme}.png"
            _take(browser, target, width=1280, height=1500, scheme=scheme)
    page.unlink()


if __name__ == "__main__":
    main()
