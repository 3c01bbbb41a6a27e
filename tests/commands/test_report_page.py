"""The report's page in a real browser: what it shows, how it is used, and what it forbids."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from testkit.browser import MISSING, Browser, open_browser
from testkit.documents import Entry, entry
from testkit.report_pictures import made_up_page
from testkit.reports import HOSTILE, block, gathered, stored
from testkit.scenario import in_thread

from asyncagg.model import Match, RunFile
from asyncagg.report import build_page
from asyncagg.report.summary import MAX_POINTS
from asyncagg.store.memory import MemoryStore

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PHONE = (390, 844)
DESKTOP = (1280, 900)
USER = {"prefers_color_scheme": "light", "prefers_reduced_motion": "reduce"}
PARTIAL = {
    "totals": {"total_opportunities": 8, "total_matches": 2, "total_no_matches": 3},
    "packs": {"count": 3, "bytes": 12_000_000},
}
ATTACK = "<img src=x onerror=window.harmed=1><script>window.harmed=1</script>"


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    """A browser for all of these tests."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages, each in a file."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "usual": in_thread(made_up_page),
        "hostile": page_of({0: _hostile(), 3: [Entry(_file(ATTACK), ATTACK)]}),
        "one": page_of({0: [entry("runs/a.json", matches=1)]}),
        "bare": page_of({0: []}),
        "many": page_of({number: [entry("a", matches=1)] for number in range(MAX_POINTS + 1)}),
        "huge": page_of({0: [entry("a", matches=2**53 - 1), entry("b", matches=2**53 - 1)]}),
        "empty": page_of({}),
        "sparse": page_of({0: [entry("a", matches=1)], 100_000: [entry("b", matches=1)]}),
        "partial": page_of({0: [entry("a", matches=1)]}, **PARTIAL),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_bytes(page)
    return {name: folder / f"{name}.html" for name in made}


def page_of(aggregates: dict[int, list[Entry]], **more: dict[str, Any]) -> bytes:
    """Return the page of a store with these aggregates, and with other numbers if given."""

    async def gather() -> dict[str, Any]:
        store = await stored(aggregates)
        if 3 in aggregates:
            await store.put("aggregates/20251021t0010Z.json", ATTACK.encode())
        return (await gathered(store)).as_dict()

    data: dict[str, Any] = in_thread(gather)
    for name, values in more.items():
        data[name] |= values
    return build_page(data)


def _file(text: str) -> RunFile:
    return RunFile(f"runs/{text}.json", 1, "e", MemoryStore()._clock())


def _hostile() -> list[Entry]:
    texts = [*HOSTILE, ATTACK, "x" * 50_000, "\u202e\u0000\n"]
    bodies = [{"title": text, text: {text: [text]}, "match_score": 1} for text in texts]
    matches = tuple([Match(1, place, orjson.dumps(body)) for place, body in enumerate(bodies)])
    return [
        entry(f"runs/{ATTACK}\u202e.json", top_matches=matches),
        *[Entry(_file(text[:900]), text) for text in texts],
    ]


@pytest.fixture
def look(one_browser: Browser, pages: dict[str, Path]) -> Callable[..., Browser]:
    """Open a page on a desktop, with default preferences unless others are given."""

    def opened(name: str, size: tuple[int, int] = DESKTOP, **preferred: str) -> Browser:
        one_browser.resize(*size)
        one_browser.prefer(**(USER | preferred))
        one_browser.open(pages[name])
        return one_browser

    return opened


def texts(browser: Browser, selector: str) -> list[str]:
    """Return the text of each visible element of a selector."""
    script = """return [...document.querySelectorAll(arguments[0])]
        .filter((each) => each.checkVisibility()).map((each) => each.textContent)"""
    return [str(text) for text in browser.run(script, selector)]


def cells(browser: Browser, table: str, column: int) -> list[str]:
    """Return the text of the cells in a column of a table."""
    return texts(browser, f"#{table} tbody tr td:nth-child({column})")


EVERY = ("usual", "hostile", "one", "bare", "many", "huge", "empty", "sparse")


@pytest.mark.parametrize("name", EVERY)
def test_a_page_logs_no_error_and_sends_no_request(
    look: Callable[..., Browser], pages: dict[str, Path], name: str
) -> None:
    """The console is empty, and the only request is for the page itself."""
    browser = look(name)
    assert browser.console() == []
    requested = [url for url in browser.requests() if not url.startswith("data:")]
    assert requested == [pages[name].as_uri()]


def test_the_policy_of_the_page_forbids_all_network(look: Callable[..., Browser]) -> None:
    """An injected script could not reach a server, nor run another script."""
    browser = look("usual")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        script = """
            const [address, done] = arguments;
            const add = (tag, own) =>
              document.body.append(Object.assign(document.createElement(tag), own));
            add("img", {src: address});
            navigator.sendBeacon(address);
            add("script", {text: "window.harmed = 1"});
            fetch(address, {mode: "no-cors"}).then(() => done("reached"), () => done("blocked"));
        """
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert browser.driver.execute_async_script(script, address) == "blocked"
        browser.settle()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert browser.run("return window.harmed") is None
    assert all("Content Security Policy" in line for line in browser.console())


def test_the_totals_are_those_of_the_aggregates(
    look: Callable[..., Browser], pages: dict[str, Path]
) -> None:
    """Each total is the exact sum, with thousands separators."""
    browser = look("usual")
    data = block(pages["usual"].read_bytes())
    shown = dict(
        browser.run("""return [...document.querySelectorAll("[data-field]")]
        .map((each) => [each.dataset.field, each.textContent])""")
    )
    totals = data["totals"]
    for name in ("total_opportunities", "total_matches", "total_no_matches", "total_errors"):
        assert shown[name] == f"{totals[name]:,}"
    for name in ("counted", "late", "quarantined"):
        assert shown[f"files.{name}"] == f"{totals['files'][name]:,}"
    assert shown["windows.missing"] == f"{data['windows']['missing']:,}"
    median, unit = shown["processing_time.p50"].split()
    assert unit == "s"
    assert float(median) == pytest.approx(totals["processing_time"]["p50"], rel=5e-3)


def test_sums_that_browsers_would_round_are_exact(look: Callable[..., Browser]) -> None:
    """Also above 2**53."""
    browser = look("huge")
    assert texts(browser, '[data-field="total_matches"]') == [f"{2 * (2**53 - 1):,}"]


def test_the_top_matches_sort_by_click(look: Callable[..., Browser]) -> None:
    """Numbers from the greatest, text from A; a second click reverses; aria-sort says which."""
    browser = look("usual")
    browser.run("document.querySelector('#matches .more-rows').click()")
    ranks = cells(browser, "top-matches", 1)
    assert ranks == [str(rank) for rank in range(1, 201)]
    button = browser.driver.find_element(By.XPATH, "//*[@id='top-matches']//button[.='Run file']")
    button.click()
    files = cells(browser, "top-matches", 4)
    assert files == sorted(files)
    assert files != sorted(files, reverse=True)
    button.click()
    assert cells(browser, "top-matches", 4) == sorted(files, reverse=True)
    sorts = browser.run("""return [...document.querySelectorAll("#top-matches th")]
        .map((each) => each.getAttribute("aria-sort"))""")
    assert sorts == [None, None, None, "descending", None]


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_the_top_matches_sort_by_keyboard(look: Callable[..., Browser], key: str) -> None:
    """A column head is a button with a visible focus that reacts to Enter and Space."""
    browser = look("usual")
    search = browser.driver.find_element(By.ID, "matches-search")
    search.click()
    for _ in range(3):  # the scrolling region, Rank, Score
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    head = browser.driver.switch_to.active_element
    assert head.text.startswith("Score")
    assert browser.run("return getComputedStyle(document.activeElement).outlineWidth") == "3px"
    head.send_keys(key, key)
    scores = [float(score) for score in cells(browser, "top-matches", 2)]
    assert scores == sorted(scores)
    assert scores[0] < 1


def test_the_search_shows_rows_with_every_word(look: Callable[..., Browser]) -> None:
    """In titles, files and fields; screen readers announce the number of rows."""
    browser = look("usual")
    field = browser.driver.find_element(By.ID, "matches-search")
    field.send_keys("quantum NASA")
    found = cells(browser, "top-matches", 4)
    assert found
    assert all("NASA" in key for key in found)
    assert texts(browser, "#matches [role=status]") == [f"{len(found)} of 200 matches"]
    field.send_keys(" nowhere-to-be-found")
    assert cells(browser, "top-matches", 4) == []
    field.clear()
    field.send_keys(" ")
    assert texts(browser, "#matches [role=status]") == ["200 matches"]


def test_quarantined_files_and_gaps_are_listed(
    look: Callable[..., Browser], pages: dict[str, Path]
) -> None:
    """Each quarantined file with its reason and where it is now; each gap with its length."""
    browser = look("usual")
    data = block(pages["usual"].read_bytes())
    shown = data["quarantined"]["shown"]
    assert cells(browser, "quarantined-files", 2) == [each["reason"] for each in shown]
    assert cells(browser, "quarantined-files", 3) == [each["moved_to"] for each in shown]
    assert cells(browser, "missing-windows", 3) == ["3", "1"]
    assert cells(browser, "missing-windows", 4) == ["15 min", "5 min"]


def test_hostile_values_are_shown_as_text(look: Callable[..., Browser]) -> None:
    """They never become markup; invisible characters in keys are escaped."""
    browser = look("hostile")
    for summary in browser.driver.find_elements(By.CSS_SELECTOR, "details > summary"):
        summary.click()
    assert browser.run("return window.harmed") is None
    assert browser.run("return document.querySelectorAll('img, body script:not([id])').length") == 6
    titles = texts(browser, "#top-matches details.match > summary")
    assert ATTACK in titles
    assert f"runs/{ATTACK}\\u202e.json" in cells(browser, "top-matches", 4)
    assert ATTACK in cells(browser, "quarantined-files", 2)
    assert texts(browser, "#unreadable-aggregates td")[0] == "aggregates/20251021t0010Z.json"
    assert browser.console() == []


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_wider_than_a_phone(look: Callable[..., Browser], name: str) -> None:
    """At 390 pixels the page does not scroll sideways, even with all details open."""
    browser = look(name, PHONE)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.run("return document.documentElement.scrollWidth") == PHONE[0]
    wide = browser.run("""return [...document.querySelectorAll("main *")].filter((each) =>
        !each.closest(".scroll.tall, caption, svg, .u-wrap")
        && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML)""")
    assert wide == []


def test_dark_mode_follows_the_system_and_the_button(look: Callable[..., Browser]) -> None:
    """The page starts with the preference of the system, and the button switches it."""
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser = look("usual", prefers_color_scheme="dark")
    dark = browser.run(ground)
    button = browser.driver.find_element(By.ID, "theme")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    light = browser.run(ground)
    assert button.get_attribute("aria-pressed") == "false"
    assert sum(map(int, re.findall(r"\d+", light))) > 3 * sum(map(int, re.findall(r"\d+", dark)))
    for scheme in ("light", "dark"):
        browser.prefer(prefers_color_scheme=scheme)
        browser.settle()
    assert browser.run(ground) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["usual", "hostile", "empty"])
def test_text_has_the_contrast_of_wcag_aa(
    look: Callable[..., Browser], name: str, scheme: str
) -> None:
    """All visible text has a contrast of 4.5 to 1 with its background, large text 3 to 1."""
    browser = look(name, prefers_color_scheme=scheme)
    low = browser.run("""
        const light = (color) => {
          const [r, g, b] = color.match(/[\\d.]+/g).map((each) => each / 255)
            .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const behind = (element) => {
          for (let each = element; each; each = each.parentElement) {
            const color = getComputedStyle(each).backgroundColor;
            if (!/, 0\\)$/.test(color)) return color;
          }
          return "rgb(255, 255, 255)";
        };
        return [...document.body.querySelectorAll("*")].filter((each) => each.checkVisibility()
          && !each.closest(".skip, script, caption")
          && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
          .map((each) => {
            const style = getComputedStyle(each);
            const [a, b] = [light(style.color), light(behind(each))].sort((x, y) => y - x);
            return [each.textContent, a / b, parseFloat(style.fontSize) >= 24 ? 3 : 4.5];
          }).filter(([, ratio, least]) => ratio < least);
    """)
    assert low == []


def test_every_chart_has_a_description_and_a_table(
    look: Callable[..., Browser], pages: dict[str, Path]
) -> None:
    """A figure has a title, a description that is also its text alternative, and a table."""
    browser = look("usual")
    points = block(pages["usual"].read_bytes())["points"]
    figures = browser.driver.find_elements(By.CSS_SELECTOR, "#figures > figure")
    assert len(figures) == 7
    for figure in figures:
        title = figure.find_element(By.TAG_NAME, "h3").text
        description = figure.find_element(By.CSS_SELECTOR, ".description").text
        drawing = figure.find_element(By.CSS_SELECTOR, "[role=img]")
        assert (drawing.get_attribute("aria-label") or "").strip() == f"{title}. {description}"
        assert drawing.find_elements(By.TAG_NAME, "canvas")
        figure.find_element(By.TAG_NAME, "summary").click()
    browser.settle()
    assert cells(browser, "chart-errors-numbers", 2) == [f"{each:,}" for each in points["errors"]]


def test_pointing_at_a_chart_shows_its_values(
    look: Callable[..., Browser], pages: dict[str, Path]
) -> None:
    """The legend shows the window under the pointer, and else the whole interval."""
    browser = look("usual")
    points = block(pages["usual"].read_bytes())["points"]
    move = """const over = document.querySelector("#chart-files .u-over");
        const box = over.getBoundingClientRect();
        const at = {bubbles: true, clientX: box.left + box.width * 0.999, clientY: box.top + 20};
        for (const name of arguments[0]) over.dispatchEvent(new MouseEvent(name, at));"""
    browser.run(move, ["mouseenter", "mousemove"])
    browser.settle()
    assert texts(browser, "#chart-files .value") == [f"{points['counted'][-1]:,}"]
    assert texts(browser, "#chart-errors .value") == [f"{points['errors'][-1]:,}"]
    assert texts(browser, "#chart-files .when") == ["window 21 Oct 2025, 12:00"]
    browser.run(move, ["mouseleave"])
    browser.settle()
    assert texts(browser, "#chart-files .when") == ["whole interval"]


def test_merged_windows_are_described(look: Callable[..., Browser]) -> None:
    """The page says how much time one point covers."""
    assert "each point covers 10 min" in texts(look("many"), "#charts-text")[0]
    assert "Each point is one window of 5 min." in texts(look("usual"), "#charts-text")[0]


def test_an_empty_store_is_described(look: Callable[..., Browser]) -> None:
    """The page says what to do, and shows no totals."""
    browser = look("empty")
    assert texts(browser, "main h2") == ["Nothing to show yet"]
    assert texts(browser, "#empty-text") == ["This interval has no aggregates."]
    assert texts(browser, "[data-field]") == []


def test_the_page_is_laid_out_for_screen_readers_and_keyboards(
    look: Callable[..., Browser],
) -> None:
    """Landmarks, one main heading, captions, named regions, and a skip link."""
    browser = look("usual")
    driver = browser.driver
    for selector in ("header", "main", "footer", "h1"):
        assert len(driver.find_elements(By.CSS_SELECTOR, f"body {selector}")) == 1
    unnamed = browser.run("""return [...document.querySelectorAll(
        "table, section, input, [role=img], [role=region]")].filter((each) => !(
        each.caption?.textContent || each.labels?.length || each.getAttribute("aria-label")
        || document.getElementById(each.getAttribute("aria-labelledby")))).length""")
    assert unnamed == 0
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert driver.switch_to.active_element.text == "Skip to the numbers"
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    assert browser.run("return getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_the_rest_of_a_long_table_is_shown_on_demand(look: Callable[..., Browser]) -> None:
    """The focus moves to the first row that was hidden."""
    browser = look("usual")
    assert len(cells(browser, "top-matches", 1)) == 25
    more = browser.driver.find_element(By.CSS_SELECTOR, "#matches .more-rows")
    assert more.text == "Show all 200"
    more.send_keys(Keys.ENTER)
    assert len(cells(browser, "top-matches", 1)) == 200
    assert browser.run("return document.activeElement.cells[0].textContent") == "26"
    assert not more.is_displayed()


# ------------------------------------------------------------------------------ a part of it

PART = "#from=20251021t0220Z&to=20251021t0340Z"


def dragged(browser: Browser, chart: str, start: float, end: float, *, shift: bool = False) -> None:
    """Drag across a chart, from one part of its width to another."""
    over = browser.driver.find_element(By.CSS_SELECTOR, f"#{chart} .u-over")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", over)
    width = over.size["width"]
    actions = ActionChains(browser.driver, duration=0)
    if shift:
        actions.key_down(Keys.SHIFT)
    actions.move_to_element_with_offset(over, round((start - 0.5) * width), 0).click_and_hold()
    actions.move_to_element_with_offset(over, round((end - 0.5) * width), 0).release()
    actions.key_up(Keys.SHIFT).perform()
    browser.settle()


def shown(browser: Browser) -> str:
    """Return the part after the # of the URL."""
    browser.settle()
    return str(browser.run("return location.hash"))


def pressed(browser: Browser, label: str) -> str:
    """Press a button of the view by keyboard; return the part after the # of the URL."""
    browser.driver.find_element(By.XPATH, f"//button[.='{label}']").send_keys(Keys.ENTER)
    return shown(browser)


def test_dragging_zooms_and_pans_all_charts(look: Callable[..., Browser]) -> None:
    """To whole windows; with the shift key it moves, a double click shows everything."""
    browser = look("usual")
    dragged(browser, "chart-files", 0.251, 0.499)
    assert shown(browser) == "#from=20251021t0300Z&to=20251021t0600Z"
    move = """const over = document.querySelector("#chart-matches .u-over");
        const box = over.getBoundingClientRect();
        const at = {bubbles: true, clientX: box.right - 1, clientY: box.top + 20};
        for (const name of arguments[0]) over.dispatchEvent(new MouseEvent(name, at));"""
    browser.run(move, ["mouseenter", "mousemove"])
    browser.settle()
    assert texts(browser, "#chart-errors .when") == ["window 21 Oct 2025, 06:00"]
    dragged(browser, "chart-matches", 0.75, 0.251, shift=True)  # to the left: later
    assert shown(browser) == "#from=20251021t0430Z&to=20251021t0730Z"
    ActionChains(browser.driver).double_click().perform()
    assert shown(browser) == ""
    assert texts(browser, "#view") == ["Shown: the whole interval"]
    assert browser.console() == []


def test_the_buttons_zoom_and_pan_without_a_mouse(look: Callable[..., Browser]) -> None:
    """They stop at the ends; "back" in the browser shows what was shown before."""
    browser = look("usual")
    assert [
        button.text
        for button in browser.driver.find_elements(By.CSS_SELECTOR, ".view button")
        if button.is_enabled()
    ] == ["Zoom in"]
    assert pressed(browser, "Zoom in") == "#from=20251021t0300Z&to=20251021t0900Z"
    assert pressed(browser, "Later") == "#from=20251021t0600Z&to=20251021t1200Z"
    assert pressed(browser, "Later") == "#from=20251021t0600Z&to=20251021t1200Z"
    assert pressed(browser, "Earlier") == "#from=20251021t0300Z&to=20251021t0900Z"
    browser.driver.back()
    assert shown(browser) == "#from=20251021t0600Z&to=20251021t1200Z"
    assert texts(browser, "#view") == [
        "Shown: 21 Oct 2025, 06:00 \N{EN DASH} 12:00; the tables, too"
    ]
    assert pressed(browser, "Zoom out") == ""


def test_the_tables_show_the_part_in_the_url(
    look: Callable[..., Browser], pages: dict[str, Path]
) -> None:
    """A link to a part opens it; searching works within it, and links within the page keep it."""
    browser = look("usual")
    data = block(pages["usual"].read_bytes())
    browser.run("location.hash = arguments[0]", PART)
    browser.settle()
    browser.driver.refresh()
    browser.settle()

    def inside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if "20251021t0225Z" <= row["window"] <= "20251021t0340Z"]

    matches = [row["key"] for row in inside(data["top_matches"]["shown"])]
    assert 25 >= len(matches) > 0
    assert cells(browser, "top-matches", 4) == matches
    quarantined = [row["key"] for row in inside(data["quarantined"]["shown"])]
    assert cells(browser, "quarantined-files", 1) == quarantined
    assert cells(browser, "missing-windows", 1) == ["21 Oct 2025, 03:10"]
    assert cells(browser, "missing-windows", 2) == ["21 Oct 2025, 03:20"]
    assert texts(browser, "#matches [role=status]") == [f"{len(matches)} of 200 matches"]
    browser.driver.find_element(By.ID, "matches-search").send_keys("nasa")
    assert cells(browser, "top-matches", 4) == [key for key in matches if "NASA" in key]
    browser.driver.find_element(By.CSS_SELECTOR, "#notes a[href='#quarantine']").click()
    assert shown(browser) == PART


@pytest.mark.parametrize(
    "part",
    ["#from=x&to=y", "#from=20251021t0400Z&to=20251021t0200Z", "#from=19990101t0000Z", "#gaps"],
)
def test_a_part_that_does_not_exist_shows_everything(
    look: Callable[..., Browser], part: str
) -> None:
    """A wrong link is no error."""
    browser = look("usual")
    browser.run("location.hash = arguments[0]", part)
    browser.driver.refresh()
    assert texts(browser, "#view") == ["Shown: the whole interval"]
    assert browser.console() == []


def test_a_window_in_a_year_is_seen_and_a_gap_is_shaded(look: Callable[..., Browser]) -> None:
    """A bar has at least three pixels, at both ends, and the time between has another ground."""
    browser = look("sparse")
    row = browser.run("""
        const canvas = document.querySelector("#chart-matches canvas");
        const bottom = canvas.height - 48, context = canvas.getContext("2d");
        const rgb = (name) => {
          const [, ...parts] = color(name).match(/#(..)(..)(..)/);
          return parts.map((each) => parseInt(each, 16)).join();
        };
        const pixels = context.getImageData(0, bottom, canvas.width, 1).data;
        const names = {[rgb("match")]: "bar", [rgb("gap")]: "gap"};
        return Array.from({length: canvas.width}, (_, x) =>
          names[pixels.slice(4 * x, 4 * x + 3).join()] ?? "").filter(Boolean);
    """)
    assert row[:3] == row[-3:] == ["bar"] * 3
    assert row.count("bar") <= 8
    assert row.count("gap") > 1000


def test_matched_means_the_same_everywhere(look: Callable[..., Browser]) -> None:
    """The share of the opportunities, also if some have no outcome; packs are shown, too."""
    browser = look("partial")
    assert texts(browser, "#outcome .legend li") == [
        "25 % matched",
        "37.5 % no match",
        "0 % errors",
    ]
    assert texts(browser, '[data-field="total_matches"] + .more') == ["25 % of opportunities"]
    assert texts(browser, "#chart-matches .description")[0].startswith("25 % of 8 opportunities")
    assert "in 3 packs of 12.0 MB" in texts(browser, '[data-field="files.bytes"] + .more')[0]
