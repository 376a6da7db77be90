"""The documentation as a site: built without a warning, its links lead somewhere, a browser shows it."""

import functools
import html.parser
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest

pytest.importorskip("myst_nb", reason="make docs installs what the site is built with")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]
ROOT = pathlib.Path(__file__).parents[1]
PICTURES = ROOT / "out" / "docs-pictures"
WIDTHS = {"wide": 1280, "phone": 390}

# What is searched for, and the pages that answer it.
QUESTIONS = {
    "what is Adam here": {"idea", "optimizers/adam"},
    "freeze a layer": {"how-to/freeze-a-layer"},
    "loss is NaN": {"how-to/loss-is-nan"},
    "change the rate": {"how-to/change-the-rate"},
    "resume": {"how-to/resume"},
    "torch AMSGrad": {"concepts/corrections", "coming-from", "idea", "optimizers/amsgrad"},
    "Muon transformer": {"how-to/muon-for-a-transformer"},
    "8-bit": {"how-to/eight-bit-state"},
    "own block": {"write/block"},
    "sweep": {"how-to/sweep"},
    "첫걸음": {"ko/first-steps"},
}
FIRST = 3  # results


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built here unless ADAMFX_SITE names the folder where `make docs` has just built it."""
    if "ADAMFX_SITE" in os.environ:
        return pathlib.Path(os.environ["ADAMFX_SITE"])
    out = tmp_path_factory.mktemp("site") / "docs"
    command = [sys.executable, str(ROOT / "docs" / "build.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def pages(site):
    return sorted(p for p in site.rglob("*.html") if p.name not in ("genindex.html",))


class Page(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[n] for n in ("id", "name") if found.get(n)}
        self.links += [found[n] for n in ("href", "src") if found.get(n)]


def test_links_lead_somewhere(site):
    read = {path: Page(path) for path in site.rglob("*.html")}
    assert len(read) > 100
    wrong = []
    for path, page in read.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme:
                good = url.scheme in ("data", "mailto") or (url.scheme == "https" and url.netloc)
            else:
                to = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
                good = to.exists() and (
                    not url.fragment or to.suffix != ".html" or url.fragment in read[to].anchors
                )
            if not good:
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert not wrong


def test_nothing_comes_from_elsewhere(site):
    """Pages work offline: no script, style or font of another host."""
    loads = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://[^\"]+", re.IGNORECASE)
    assert not [m[0] for p in site.rglob("*.html") for m in loads.finditer(p.read_text())]


def test_the_index_of_the_search_has_the_words(site):
    """Every word of a question leads to a page that answers it."""
    from sphinx.search.en import SearchEnglish

    language = SearchEnglish({})
    text = (site / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])

    def documents(word):
        found = [
            index[where].get(w)
            for where in ("terms", "titleterms")
            for w in {word, language.stem(word)}
        ]
        return {
            index["docnames"][n]
            for x in found
            if x is not None
            for n in (x if isinstance(x, list) else [x])
        }

    for question, answers in QUESTIONS.items():
        words = set(re.findall(r"\w\w+", question.lower())) - set(language.stopwords)
        assert answers & set.intersection(*map(documents, words)), question


def test_a_card_says_what_the_value_says(site):
    import adamfx as fx

    text = (site / "optimizers" / "adamw.html").read_text()
    plain = re.sub(r"<[^>]+>|\s", "", text).replace("&quot;", '"')
    assert repr(fx.adamw(0.1)).replace(" ", "")[:-1] in plain.replace(",)", ")").replace(
        "),)", "))"
    )
    assert re.search(r"a matrix of 256 x 256.*?<p>8</p>", text, re.DOTALL)


def test_korean_pages_say_that_they_are(site):
    said = {
        path.relative_to(site).as_posix()[:-5]
        for path in site.rglob("*.html")
        if '<html class="no-js" lang="ko"' in path.read_text()
    }
    notebooks = (path.stem for path in (ROOT / "notebooks").glob("*_ko.ipynb"))
    assert said == {"ko/first-steps", *(f"notebooks/{name}" for name in notebooks)}


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("there is no chromium and chromedriver; Debian has packages of these names")
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    there = webdriver.Chrome(options, webdriver.ChromeService(driver))
    there.address = f"http://127.0.0.1:{server.server_port}/"
    yield there
    there.quit()
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def width(browser, pixels):
    metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


SEEN = """
const pictures = [...document.images].filter(x => x.getClientRects().length);
const sizes = [...document.querySelectorAll('math')].map(x => x.getBoundingClientRect());
return {
  wide: document.documentElement.scrollWidth - window.innerWidth,
  broken: pictures.filter(x => x.loading != 'lazy' && !x.naturalWidth).map(x => x.src),
  equations: sizes.length,
  flat: sizes.filter(x => x.width < 3 || x.height < 3).length,
  fractions: [...document.querySelectorAll('mfrac')].map(x => x.getBoundingClientRect().height),
  errors: document.querySelectorAll('merror').length,
};
"""


@pytest.mark.parametrize("name", WIDTHS)
def test_every_page_in_a_browser(site, browser, name):
    width(browser, WIDTHS[name])
    folder = PICTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    equations = 0
    for path in pages(site):
        where = path.relative_to(site).as_posix()
        browser.get(browser.address + where)
        browser.execute_async_script("document.fonts.ready.then(arguments[0])")
        seen = browser.execute_script(SEEN)
        browser.save_screenshot(str(folder / (where.replace("/", "-")[:-5] + ".png")))
        assert seen["wide"] <= 0, (where, seen)
        assert not seen["broken"], (where, seen)
        assert seen["flat"] + seen["errors"] == 0, (where, seen)
        assert all(height > 20 for height in seen["fractions"]), (where, seen)
        equations += seen["equations"]
    assert equations > 20
    assert not [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_search_finds_the_page(browser, question):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    width(browser, WIDTHS["wide"])
    PICTURES.mkdir(parents=True, exist_ok=True)
    browser.get(browser.address + "search.html?q=" + urllib.parse.quote(question))
    WebDriverWait(browser, 30).until(
        lambda b: "found" in b.find_element(By.CSS_SELECTOR, ".search-summary").text
    )
    links = browser.find_elements(By.CSS_SELECTOR, "ul.search > li > a")[:FIRST]
    found = [urllib.parse.urlsplit(x.get_attribute("href")).path[1:-5] for x in links]
    slug = re.sub(r"\W+", "-", question.lower())
    browser.save_screenshot(str(PICTURES / f"search-{slug}.png"))
    assert QUESTIONS[question] & set(found), found
