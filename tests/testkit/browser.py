"""A real browser for the tests of pages: headless Chromium, driven with Selenium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

__all__ = ("MISSING", "Browser", "open_browser")

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_DRIVER = shutil.which("chromedriver")

MISSING = "" if _CHROMIUM and _DRIVER else "no chromium with its chromedriver on this machine"
"""Why there is no browser; empty if there is one."""

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
)


class Browser:
    """One page in a browser.

    Attributes:
        driver: The Selenium driver.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        """Open a file, and discard earlier log entries."""
        self.console()
        self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def console(self) -> list[str]:
        """Return the console's new messages: errors and violations of the policy."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]

    def requests(self) -> list[str]:
        """Return the URLs requested since the last call."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def settle(self) -> None:
        """Wait until changes are drawn."""
        self.driver.execute_async_script(
            "requestAnimationFrame(() => setTimeout(arguments[0], 20))"
        )

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, **features: str) -> None:
        """Set media features, such as ``prefers_color_scheme="dark"``."""
        media = [{"name": name.replace("_", "-"), "value": each} for name, each in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Open a browser with an empty profile and no background requests."""
    with TemporaryDirectory(prefix="asyncagg-browser-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = _CHROMIUM or ""
        for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options=options, service=ChromeService(_DRIVER))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
