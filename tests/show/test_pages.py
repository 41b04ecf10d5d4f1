"""The pages in a real browser: wide and narrow, light and dark, with script, without a network."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect, sync_playwright

from pipeline.show import audit_page, compare_page, lineage_page
from pipeline.show.report import write_index, write_report
from tests import report_data
from tests.audit import told
from tests.show.test_compare_page import made
from tests.show.test_report import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGES = (
    "eight",
    "many",
    "generation",
    "rejected",
    "first",
    "failed",
    "hostile",
    "index",
    "compare",
    "lineage",
    "audit",
    "busy",
)
WIDTHS = (390, 1280)

# The lowest contrast (WCAG 2.2, 1.4.3) of any visible text with what lies behind it, and which text that is.
LOWEST_CONTRAST = """() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reduceRight((under, layer) => over(layer, under), [255, 255, 255]);
  };
  let lowest = { ratio: 21, text: "" };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = parse(element.closest("svg") ? style.fill : style.color);
    const background = behind(element);
    const pair = [luminance(over(colour, background)), luminance(background)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    count += 1;
    if (ratio < lowest.ratio) lowest = { ratio, text };
  }
  return { ...lowest, count };
}"""

# Pairs of labels in the same picture whose boxes overlap, the smaller by more than a tenth of its area.
OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    const texts = [...svg.querySelectorAll("text")].map((t) => [t.textContent.trim(), t.getBoundingClientRect(), t]);
    for (const [i, [a, ra, ta]] of texts.entries()) {
      for (const [b, rb, tb] of texts.slice(i + 1)) {
        // The bounding box of slanted text is not where its letters are.
        if ([ta, tb].some((t) => /rotate\\((?!-?0\\b|-?90\\b)/.test(t.getAttribute("transform") || ""))) continue;
        const width = Math.min(ra.right, rb.right) - Math.max(ra.left, rb.left);
        const height = Math.min(ra.bottom, rb.bottom) - Math.max(ra.top, rb.top);
        if (width <= 0 || height <= 0) continue;
        const smaller = Math.min(ra.width * ra.height, rb.width * rb.height);
        if (width * height > 0.1 * smaller) found.push([a, b]);
      }
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, inputs = tmp_path_factory.mktemp("reports"), tmp_path_factory.mktemp("inputs")
    pages = {
        "eight": report_data.classification(inputs / "eight", rows=600),
        "many": report_data.classification(
            inputs / "many", labels=report_data.INTENTS, rows=1500, prefix="banking"
        ),
        "generation": report_data.generation(inputs / "generation", rows=90),
        "rejected": report_data.rejected(inputs / "rejected"),
        "first": report_data.classification(
            inputs / "first", rows=400, accuracies={"prefix": 0.75, "base": 0.55}, version="1"
        ),
        "failed": report_data.bare(),
        "hostile": report_data.classification(inputs / "hostile", labels=(*HOSTILE, "a" * 300), rows=300),
    }
    for name, data in pages.items():
        write_report(data, folder / f"{name}.html")
    write_index(folder)
    compare_page.write(made(), inputs).rename(folder / "compare.html")
    lineage_page.write(told.followed(), folder / "lineage.html")
    audit_page.write(told.audited(reason=told.HOSTILE), folder / "audit.html")
    audit_page.write(told.audited(40, 400, verification=told.faulty(40)), folder / "busy.html")
    assert sorted(path.stem for path in folder.glob("*.html")) == sorted(PAGES)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    assert path is not None, f"none of {', '.join(names)} is installed; these tests need one"
    with sync_playwright() as playwright:
        # Every launch makes a profile folder of its own and deletes it afterwards.
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Opened:
    """A page in a fresh browser context, with what it asked for and what it complained about."""

    def __init__(self, browser: Browser, path: Path, *, width: int = 1280, scheme: Any = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_asks_for_nothing_and_complains_about_nothing(
    browser: Browser, folder: Path, name: str, width: int
) -> None:
    with Opened(browser, folder / f"{name}.html", width=width) as opened:
        widths = opened.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(widths) <= width
        assert [url for url in opened.requests if not url.startswith(("file://", "data:"))] == []
        assert len([url for url in opened.requests if url.startswith("file://")]) == 1
        assert opened.complaints == []
        assert opened.page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_all_text_can_be_read_in_light_and_in_dark(
    browser: Browser, folder: Path, name: str, scheme: str
) -> None:
    with Opened(browser, folder / f"{name}.html", scheme=scheme) as opened:
        lowest = opened.page.evaluate(LOWEST_CONTRAST)
        assert lowest["count"] > 10
        assert lowest["ratio"] >= 4.5, lowest
        page = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(page.removeprefix("rgb(").split(",")[0])
        assert red > 200 if scheme == "light" else red < 50


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["eight", "rejected", "generation"])
def test_every_criterion_and_its_result_are_on_screen(
    browser: Browser, folder: Path, name: str, width: int
) -> None:
    with Opened(browser, folder / f"{name}.html", width=width) as opened:
        rows = opened.page.locator("#criteria tbody tr")
        assert rows.count() >= 4
        for row in rows.all():
            assert row.is_visible()
            result = row.locator(".badge")
            assert result.is_visible()
            assert result.inner_text().strip() in ("Passed", "Failed")
            box = result.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_the_table_of_classes_sorts_by_any_column_and_by_keyboard(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "many.html") as opened:
        table = opened.page.locator("#classes table")

        def column(number: int) -> list[str]:
            cells = table.locator(f"tbody tr > :nth-child({number})")
            return [text.strip() for text in cells.all_inner_texts()]

        assert table.locator("th[aria-sort=ascending]").inner_text().strip() == "F1"
        before = [float(value) for value in column(6)]
        assert before == sorted(before)
        assert len(before) == 77
        button = table.get_by_role("button", name="Class", exact=True)
        button.click()
        assert column(2) == sorted(column(2))
        assert table.locator("th[aria-sort]").count() == 1
        button.press("Enter")
        assert column(2) == sorted(column(2), reverse=True)
        assert table.locator("th[aria-sort=descending]").inner_text().strip() == "Class"
        table.get_by_role("button", name="No.").click()
        assert [int(value) for value in column(1)] == list(range(77, 0, -1))


def test_a_hash_can_be_copied(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "eight.html") as opened:
        button = opened.page.locator("#lineage button.copy").first
        button.click()
        expect(button).not_to_have_text("Copy")
        code = opened.page.locator("#lineage code.hash").first.inner_text()
        assert opened.page.evaluate("getSelection().toString()").strip() == code


def test_hostile_text_runs_nothing(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "hostile.html") as opened:
        dialogs: list[str] = []
        opened.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        opened.page.reload()
        assert dialogs == []
        assert opened.page.locator("script").count() == 1
        assert opened.page.locator("#classes").get_by_text(HOSTILE[0]).count() == 1


def test_the_security_policy_stops_script_and_pictures_that_are_not_the_pages_own(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        injected = f'<script>window.hacked = 1</script><img src="{address}" onerror="window.hacked = 2">'
        content = (folder / "failed.html").read_text().replace("<main>", "<main>" + injected)
        (tmp_path / "page.html").write_text(content)
        with Opened(browser, tmp_path / "page.html") as opened:
            opened.page.wait_for_load_state("networkidle")
            assert opened.page.evaluate("window.hacked") is None
            assert len([text for text in opened.complaints if "Content Security Policy" in text]) >= 2
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_index_leads_to_every_report_and_sorts(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "index.html") as opened:
        links = opened.page.locator("tbody a")
        assert links.count() == len(PAGES) - 5  # itself, the comparison, the lineage and the audits
        opened.page.get_by_role("button", name="Outcome").click()
        outcomes = opened.page.locator("tbody .badge").all_inner_texts()
        assert outcomes == sorted(outcomes)
        links.first.click()
        expect(opened.page.locator("#verdict")).to_be_visible()


def test_a_printed_page_is_light_whole_and_without_buttons(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    with Opened(browser, folder / "many.html") as opened:
        opened.page.emulate_media(media="print")
        opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.page.locator("button.copy:visible").count() == 0
        assert opened.page.locator("details:not([open])").count() == 0
        cut = "e => e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflowY !== 'visible'"
        assert not any(opened.page.locator(".scroll").nth(i).evaluate(cut)
                       for i in range(opened.page.locator(".scroll").count()))  # fmt: skip
        document = opened.page.pdf(path=tmp_path / "page.pdf", format="A4")
        assert document.startswith(b"%PDF")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["lineage", "audit"])
def test_a_node_opens_what_is_known_of_it_by_click_and_by_keyboard_and_nothing_else_stays_open(
    browser: Browser, folder: Path, name: str, width: int
) -> None:
    with Opened(browser, folder / f"{name}.html", width=width) as opened:
        page = opened.page
        nodes = page.locator(".graph .node")
        assert nodes.count() >= 8
        known = page.locator(".known:visible")
        assert known.count() == 1
        assert known.locator("h3").inner_text().startswith("Version")
        node = page.locator(".graph .node", has_text="Dataset version").first
        node.click()
        # A page follows its address in a task of its own: what comes of a link is waited for.
        expect(known.locator("h3")).to_have_text(re.compile("^Dataset version"))
        expect(node).to_have_attribute("aria-current", "true")
        expect(page.locator(".node[aria-current]")).to_have_count(1)
        assert known.count() == 1
        assert known.locator("code.hash").first.is_visible()
        lit = page.locator(".graph path.lit").count()
        assert lit >= 1
        nodes.last.focus()
        page.keyboard.press("Enter")
        expect(nodes.last).to_have_attribute("aria-current", "true")
        expect(known).to_be_focused()
        assert known.count() == 1
        assert known.locator("h3").inner_text().split()[0] in nodes.last.inner_text()
        known.get_by_role("link", name="Back to the graph").press("Enter")
        page.wait_for_url(re.compile("#graph$"))
        assert known.count() == 1
        order = nodes.evaluate_all("nodes => nodes.map(node => node.tabIndex)")
        assert set(order) == {0}
        assert opened.complaints == []


def test_what_is_known_of_a_node_links_to_the_nodes_beside_it_and_its_digests_can_be_copied(
    browser: Browser, folder: Path
) -> None:
    found = told.followed()
    with Opened(browser, folder / "lineage.html") as opened:
        known = opened.page.locator(".known:visible")
        known.get_by_role("link", name=found["record"]["adapter_digest"][:12]).click()
        expect(known.locator("h3")).to_have_text(re.compile("^Prefix files"))
        digests = known.locator("code.hash").all_inner_texts()
        assert digests == [found["record"]["adapter_digest"], *found["record"]["files"].values()]
        known.locator("button.copy").first.click()
        opened.page.wait_for_function("getSelection().toString() !== ''")
        assert opened.page.evaluate("getSelection().toString()").strip() == digests[0]


def test_a_page_without_script_shows_what_is_known_of_every_node(browser: Browser, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "lineage.html").as_uri())
    assert page.locator(".known:visible").count() == page.locator(".node").count() >= 12
    context.close()


def test_hostile_reasons_run_nothing_and_are_shown_as_they_are(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "audit.html") as opened:
        assert opened.page.locator("script").count() == 1
        assert opened.page.title() == "reviews: audit"
        cell = opened.page.locator("#events td.reasoned").first
        assert cell.text_content() == told.HOSTILE
        assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_versions_in_the_timelines_bars_can_be_read(browser: Browser, folder: Path, scheme: str) -> None:
    contrast = """() => {
      const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      const luminance = (colour) => {
        const parts = colour.match(/[\\d.]+/g).map(Number).slice(0, 3);
        const [r, g, b] = colour.startsWith("color(") ? parts : parts.map((c) => c / 255);
        return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
      };
      return [...document.querySelectorAll(".span text")].map((text) => {
        const bar = text.parentElement.querySelector("rect");
        const pair = [text, bar].map((e) => luminance(getComputedStyle(e).fill)).sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
      });
    }"""
    with Opened(browser, folder / "audit.html", scheme=scheme) as opened:
        ratios = opened.page.evaluate(contrast)
        assert len(ratios) >= 4
        assert min(ratios) >= 4.5


def test_dots_of_the_timeline_lead_to_their_events_and_do_not_overlap(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "busy.html") as opened:
        overlaps = """() => {
          const found = [];
          const dots = [...document.querySelectorAll(".dot circle")].map((c) => c.getBoundingClientRect());
          for (const [i, a] of dots.entries()) for (const b of dots.slice(i + 1)) {
            if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
                && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5) found.push([a.x, b.x]);
          }
          return [dots.length, found];
        }"""
        count, found = opened.page.evaluate(overlaps)
        assert count > 50
        assert found == []
        dot = opened.page.locator(".dot").last
        target = dot.get_attribute("href")
        assert target is not None
        dot.press("Enter")
        assert opened.page.locator(f"tr{target}").is_visible()


def test_a_printed_audit_shows_what_is_known_of_every_node_and_all_events(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    with Opened(browser, folder / "audit.html") as opened:
        opened.page.emulate_media(media="print")
        opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.page.locator(".known:visible").count() == opened.page.locator(".node").count()
        cut = "e => e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflowY !== 'visible'"
        for box in opened.page.locator(".scroll, .graph").all():
            assert not box.evaluate(cut)
        assert opened.page.pdf(path=tmp_path / "page.pdf", format="A4").startswith(b"%PDF")
