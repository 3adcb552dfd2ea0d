"""The documentation site in a browser: it asks no other host, says nothing, fits a phone and is searched."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.chrome import Tab

pytestmark = [pytest.mark.slow, pytest.mark.browser]

PAGES = (
    "index.html",
    "start.html",
    "reference/parts.html",
    "reference/run-directory.html",
    "reference/api/models.html",
    "project/contributing.html",
)
"""The first page, one with the output of a command, tables, the Python reference, and long blocks."""

WIDER = """(() => { const width = document.documentElement.clientWidth;  // innerWidth grows with the page
  const over = e => e.getBoundingClientRect().right > width + 1;
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX) && !over(e);
  const held = e => e.matches('body') ? false : scrolls(e) || held(e.parentElement);
  return [...document.querySelectorAll('.md-content *')].filter(e => over(e) && !held(e)).slice(0, 5)
    .map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 60)); })()"""
"""Elements that reach beyond the window and are in nothing that scrolls."""


class Loads(HTMLParser):
    """Addresses that a page loads by itself, as against links that a reader follows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") == "canonical":
            return
        names = (
            ("href",)
            if tag == "link"
            else ()
            if tag == "a"
            else ("src", "srcset", "data", "action", "poster")
        )
        self.found += [value for name in names if (value := given.get(name))]


def test_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(made: tuple[Path, str]) -> None:
    folder, said = made
    assert [line for line in said.splitlines() if not line.startswith("INFO")] == []
    pages = sorted(folder.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        elsewhere = [
            url for url in loads.found if urlsplit(url).scheme in ("http", "https") or url.startswith("//")
        ]
        assert elsewhere == [], page
    for style in folder.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\"' ]*(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("page", PAGES)
def test_page_asks_no_other_host_says_nothing_and_fits(tab: Tab, site: str, page: str) -> None:
    for width in (390, 1200):
        tab.open(f"{site}/{page}", width=width)
        assert tab.complaints(site) == []
        assert tab.eval("document.documentElement.scrollWidth") <= width
        assert tab.eval(WIDER) == []


def test_element_that_is_too_wide_is_seen(tab: Tab, site: str) -> None:
    tab.open(f"{site}/index.html", width=390)
    tab.eval(
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<p style=\"width:600px\">wide')"
    )
    assert any("wide" in said for said in tab.eval(WIDER))


def test_policy_reports_a_request_to_another_host(tab: Tab, site: str) -> None:
    tab.open(f"{site}/index.html")
    tab.eval("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))")
    tab.until("document.images.length > 0")
    assert any("Content Security Policy" in str(said) for said in tab.complaints(site))


@pytest.mark.parametrize("way", ["served", "folder"])
def test_search_finds_a_page_by_a_word_on_it(way: str, tab: Tab, site: str, made: tuple[Path, str]) -> None:
    address = site if way == "served" else made[0].as_uri()
    tab.open(f"{address}/index.html")
    tab.eval("document.querySelector('label[for=__search]').click()")
    typed = (
        "Object.assign(document.querySelector('[data-md-component=search-query]'), { value: 'antithetic' })"
    )
    tab.eval(f"{typed}.dispatchEvent(new Event('input', {{ bubbles: true }}))")
    tab.eval("document.querySelector('[data-md-component=search-query]').dispatchEvent(new Event('keyup'))")
    links = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href'))"
    found = tab.until(f"{links}.length && {links}")
    assert any("attacks.html" in link for link in found)
    assert tab.complaints(address) == []


def test_colours_follow_the_system(tab: Tab, site: str) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.open(f"{site}/index.html").eval(paper)
    dark = tab.open(f"{site}/index.html", scheme="dark").eval(paper)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
