"""The page as a reader sees it, in a headless Chromium, where there is one."""

import shutil
import time

import pytest
from selenium.webdriver import ActionChains, Keys

from superpose.report.page import write_report
from tests.report.test_write import HOSTILE, reproduced  # noqa: F401  # a fixture

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium-driver")

AGAINST = """
const background = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
const ink = getComputedStyle(document.body).color.match(/\\d+/g).map(Number);
return [background, ink];
"""
PLACED = """
const charts = [...document.querySelectorAll('.chart')];
return charts.map(chart => [chart.querySelectorAll('.scatterlayer .trace').length, chart.clientWidth]);
"""
TIP = """
const tip = document.getElementById('tip'), box = tip.getBoundingClientRect();
return tip.hidden ? null : [tip.textContent, box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight];
"""
INK = """
const ink = document.querySelector('#chart-0 .xtitle').style.fill;
const expected = document.createElement('i');
expected.style.color = getComputedStyle(document.documentElement).getPropertyValue('--ink');
return ink === expected.style.color;
"""
TABLES = """
const wide = [...document.querySelectorAll('.scroll')].filter(table => table.scrollWidth > table.clientWidth);
return wide.map(table => [table.tabIndex, getComputedStyle(table).backgroundImage.split('linear-gradient').length - 1]);
"""
LEGEND = """
const last = [...document.querySelectorAll('.chart')].at(-1);
return [...last.querySelectorAll('.legendtext')].map(text => text.textContent);
"""


@pytest.fixture(scope="module")
def page(compared, reproduced, tmp_path_factory):  # noqa: F811
    """A report of everything; one run has a name that would like to be a script."""
    directory, _ = compared
    folder = tmp_path_factory.mktemp("page")
    hostile = folder / HOSTILE.replace("/", "")
    shutil.copytree(directory / "tst-20-seed1", hostile)
    return write_report([directory, reproduced, hostile], folder / "report.html")[0]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=[(1100, 800, "light"), (390, 844, "dark")], ids=["desk, light", "phone, dark"])
def opened(request, browser, page):
    width, height, scheme = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    browser.get(page.as_uri())
    for _ in range(200):  # plotly draws when it finds the time
        charts = browser.execute_script(PLACED)
        if charts and all(traces for traces, _ in charts):
            break
        time.sleep(0.1)
    return browser, width, scheme


def eventually(browser, script, value):
    for _ in range(50):
        if browser.execute_script(script) == value:
            return True
        time.sleep(0.1)
    return False


def test_it_draws_without_errors_on_any_screen(opened, page):
    browser, width, scheme = opened
    charts = browser.execute_script(PLACED)
    assert len(charts) == len(list(page.parent.glob("report-*.png"))) > 9
    for traces, chart_width in charts:
        assert traces > 0, charts
        assert 0.85 * min(width, 1056) < chart_width <= width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width  # nothing sticks out
    background, ink = browser.execute_script(AGAINST)
    assert (sum(background[:3]) < 200) == (scheme == "dark")
    assert abs(sum(ink[:3]) - sum(background[:3])) > 500
    size = browser.execute_script("return parseFloat(getComputedStyle(document.querySelector('.verdict')).fontSize)")
    assert size >= 14
    assert browser.get_log("browser") == []


def test_an_axis_can_be_chosen(opened):
    browser, *_ = opened
    title = "return document.querySelector('#chart-0 .xtitle').textContent"
    switch = "return document.getElementById('chart-0').layout.shapes[0].x0"
    assert browser.execute_script(title) == "training FLOPs"
    flops = browser.execute_script(switch)
    for name in ("raw tokens read", "latents computed", "training seconds"):
        button = next(b for b in browser.find_elements("css selector", '[data-chart="0"]') if b.text == name)
        browser.execute_script("arguments[0].click()", button)
        assert eventually(browser, title, name)
        assert button.get_attribute("aria-pressed") == "true"
    browser.find_elements("css selector", '[data-chart="0"]')[1].click()
    assert eventually(browser, switch, 8 * 4 * 4 * 16)  # raw tokens at the switch
    assert flops != 8 * 4 * 4 * 16
    assert browser.get_log("browser") == []


def test_a_word_is_explained_on_focus_on_hover_and_on_touch(opened):
    browser, *_ = opened
    word = browser.find_element("css selector", ".verdict .term")
    meaning = browser.find_element("id", word.get_attribute("aria-describedby")).get_attribute("textContent")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", word)
    assert eventually(browser, TIP, [meaning, True])
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert browser.execute_script(TIP) is None
    browser.execute_script("arguments[0].blur()", word)
    for act in (ActionChains(browser).move_to_element(word), ActionChains(browser).click(word)):
        act.perform()
        assert eventually(browser, TIP, [meaning, True])
        browser.execute_script("document.activeElement.blur()")
        ActionChains(browser).move_by_offset(0, 200).click().perform()
        assert eventually(browser, TIP, None)
    assert browser.get_log("browser") == []


def test_the_words_at_the_edges_are_explained_inside_of_the_screen(opened):
    browser, width, _ = opened
    words = browser.find_elements("css selector", "figcaption .term, th .term")
    last = max(words, key=lambda word: word.rect["x"] + word.rect["width"] if word.rect["x"] < width else 0)
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'}); arguments[0].focus()", last)
    text, inside = browser.execute_script(TIP)
    assert text
    assert inside
    browser.execute_script("arguments[0].blur()", last)
    assert browser.execute_script(TIP) is None


def test_charts_follow_the_scheme_while_the_page_is_open(opened):
    browser, _, scheme = opened
    for other in ("light" if scheme == "dark" else "dark", scheme):
        feature = {"name": "prefers-color-scheme", "value": other}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        assert eventually(browser, INK, True)
    assert browser.get_log("browser") == []


def test_a_table_that_is_too_wide_scrolls_and_shows_that_it_does(opened):
    browser, width, _ = opened
    tables = browser.execute_script(TABLES)
    assert tables or width > 500
    assert all(place == [0, 4] for place in tables)  # reached by keyboard; covers and shades


def test_what_tst_is_stands_first_with_a_picture(opened):
    browser, width, _ = opened
    first = browser.find_element("css selector", "main > section")
    assert "reads bags" in first.text
    one, other = first.find_elements("css selector", "svg")
    assert (one.rect["y"] == other.rect["y"]) == (width > 500)  # beside each other, or one above the other
    size = "return parseFloat(getComputedStyle(arguments[0]).fontSize) * arguments[0].getScreenCTM().a"
    assert browser.execute_script(size, one.find_element("css selector", "text")) > 10


def test_a_name_that_is_a_script_is_shown_and_not_run(opened):
    browser, *_ = opened
    assert browser.execute_script("return document.querySelectorAll('img, main b').length") == 0
    legends = browser.execute_script(LEGEND)
    assert legends == [] or "onerror=alert(1)" in legends[0]
    assert "onerror=alert(1)" in browser.find_element("css selector", "main").text
