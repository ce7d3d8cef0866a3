# ruff: noqa: D102, D103
"""The page's numbers are the library's: its functions in a JavaScript engine, then the page itself in Chromium.

The second part needs selenium, chromium and chromium-driver (Debian's names). BNCPU_PAGE_SHOTS names a folder for its
screenshots.
"""

import base64
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import quickjs
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_wine

from bncpu import BatchNormTransformer, batch_norm, batch_norm_forward

HERE = Path(__file__).parent
N_BATCHES = 60
START = dict(n=16, k=12, gamma=1, beta=0, eps=1e-5, momentum=0.9, halflife=64, sorted=False, kind="transformer")
FEATURES = ["alcohol", "proline"]
# Readers of the page may move the slider anywhere; code of it that is copied warns them.
pytestmark = pytest.mark.filterwarnings("ignore:.* momentum=.* is the weight of the old value")


# What the library says


def stream(is_sorted):
    X = load_wine().data[:, [0, 12]]
    return X if is_sorted else X[np.random.default_rng(0).permutation(len(X))]


def by_library(X, p, last):
    """Everything that `bn.run` gives, and tolerances for results that are given in units of gamma."""
    width = X.shape[1]
    gamma, beta, eps = np.full(width, float(p["gamma"])), np.full(width, float(p["beta"])), p["eps"]
    running_mean, running_var = np.zeros(width), np.ones(width)
    forgets = {"transformer": "momentum", "halflife": "halflife"}.get(p["kind"])
    transformer = BatchNormTransformer(**{forgets: p[forgets]} if forgets else {}, gamma=gamma, beta=beta, eps=eps)
    exact = batch_norm_forward(X, gamma, beta, eps=eps)[0]
    steps = []
    for k in range(last):
        batch = X.take(range(k * p["n"], (k + 1) * p["n"]), axis=0, mode="wrap")
        running = {"running_mean": running_mean, "running_var": running_var} if p["kind"] == "layer" else {}
        train, saved = batch_norm_forward(batch, gamma, beta, **running, momentum=p["momentum"], eps=eps)
        own = BatchNormTransformer().fit(batch)
        np.testing.assert_allclose(own.running_mean_, saved.mean, rtol=1e-15)
        if p["kind"] == "layer":
            inference, everything = (batch_norm(x, running_mean, running_var, gamma, beta, eps=eps) for x in (batch, X))
        else:
            transformer.partial_fit(batch)
            running_mean, running_var = transformer.running_mean_, transformer.running_var_
            inference, everything = transformer.transform(batch), transformer.transform(X)
        steps.append(
            {
                "batch_mean": own.running_mean_,
                "batch_var": own.running_var_,
                "running_mean": running_mean.copy(),
                "running_var": running_var.copy(),
                "train": train,
                "inference": inference,
                "all": everything,
                "gap": np.sqrt(np.mean((train - inference) ** 2)),
                "off": np.sqrt(np.mean((everything - exact) ** 2)),
            }
        )
    return steps


def refusal_of_library(X, p):
    refusing = BatchNormTransformer(momentum=0.9).partial_fit if p["kind"] == "transformer" else batch_norm_forward
    with pytest.raises(ValueError, match="at least") as caught:
        refusing(X[: p["n"]])
    return str(caught.value)


def rounding(X, step, p):
    """The error that is nobody's fault in results at inference: a layer's running mean is one rounded number."""
    if p["kind"] != "layer":
        return 0.0
    divisor = np.sqrt(step["running_var"] + p["eps"])
    units = np.abs(step["running_mean"]) / np.where(divisor > 0, divisor, np.inf)
    return 8 * np.finfo(float).eps * np.max(units) * abs(p["gamma"])


def assert_same(shown, expected, X, p):
    """Each number of a step within 1e-12, of itself or of the largest beside it."""
    slack = rounding(X, expected, p)
    for name, value in expected.items():
        if name not in shown:
            continue
        atol = 0.0
        if name.endswith("_mean"):
            atol = 1e-12 * np.abs(X).max(axis=0) + 5e-324  # the smallest number cannot be halved
        elif not name.endswith("_var"):
            atol = 1e-12 * max(np.abs(value).max(), abs(p["gamma"]) + abs(p["beta"])) + slack * (name != "train")
        assert np.shape(shown[name]) == np.shape(value), name
        error = np.abs(np.asarray(shown[name], dtype=float) - value)
        assert np.all(error <= 1e-12 * np.abs(value) + atol), (name, error.max())


# Cases of both parts

KINDS = ["layer", "transformer", "cumulative", "halflife"]
tenths = st.integers(-30, 30).map(lambda v: v / 10)
page_parameters = st.fixed_dictionaries(
    dict(
        n=st.integers(1, 64),
        k=st.integers(1, N_BATCHES),
        gamma=tenths,
        beta=tenths,
        eps=st.sampled_from([0.0, *(float(f"1e{power}") for power in range(-8, 6))]),
        momentum=st.integers(0, 99).map(lambda v: v / 100),
        halflife=st.integers(1, 12).map(lambda v: 2**v),
        sorted=st.booleans(),
        kind=st.sampled_from(KINDS),
    )
)


def with_traps(test):
    tiny = {"n": 2, "eps": 0.0, "sorted": True, "k": N_BATCHES}
    kinds = [{"kind": "halflife"}, {"kind": "halflife", "halflife": 2, "n": 64}, {"kind": "cumulative", "n": 1}]
    for trap in ({}, {"n": 1}, {"n": 1, "kind": "layer"}, tiny, {"kind": "layer", "momentum": 0.0}, *kinds):
        test = example(p=START | trap)(test)
    return test


@st.composite
def hostile(draw):
    """A short stream far from 0, with an outlier in front, or with a constant feature; and parameters."""
    size, far, scale = (
        draw(st.integers(2, 40)),
        draw(st.sampled_from([0, -1e4, 1e6])),
        draw(st.sampled_from([1e-3, 1, 1e3])),
    )
    X = far + scale * np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=(size, 2))
    if draw(st.booleans()):
        X[0, 0] += draw(st.sampled_from([1e3, -1e6])) * scale
    constant = draw(st.sampled_from([None, 0.0, 0.1, 1e6 / 3]))
    if constant is not None:
        X[: draw(st.sampled_from([4, 40])), 1] = constant
        X[::3, 1] = np.nextafter(X[::3, 1], X[::3, 1] + draw(st.integers(0, 1)))  # or nearly: rounding alone
    p = draw(page_parameters) | {"n": draw(st.integers(2, 12)), "eps": draw(st.sampled_from([0.0, 1e-5, 1.0]))}
    return X, p


# The functions, in an engine that pip installs


@pytest.fixture(scope="module")
def call():
    """Calls a function of `bn`; arguments and results go as JSON, which keeps every bit of a float."""
    context = quickjs.Context()
    context.eval("var module = {};" + (HERE / "explore.js").read_text(encoding="utf-8"))
    context.eval("function call(name, args) { return JSON.stringify(module.exports[name](...JSON.parse(args))); }")
    js = context.get("call")
    return lambda name, *args: json.loads(js(name, json.dumps(args)))


def steps_of(call, X, p, last):
    steps = call("run", X.tolist(), p, last)["steps"]
    for step in steps:
        for name in ("batch", "running"):
            step[f"{name}_mean"] = [s["hi"] + s["lo"] for s in step[name]]
            step[f"{name}_var"] = [s["var"] for s in step[name]]
        step |= {name: np.transpose(step[name]) for name in ("train", "inference", "all")}
    return steps


def test_the_data_are_scikit_learns():
    wine = json.loads(re.search(r"const wine = (.*);", (HERE / "wine.js").read_text(), flags=re.DOTALL)[1])
    np.testing.assert_array_equal(wine["rows"], stream(True))
    np.testing.assert_array_equal(np.array(wine["rows"])[wine["order"]], stream(False))
    np.testing.assert_array_equal(wine["classes"], load_wine().target)


@with_traps
@settings(max_examples=40, deadline=None)
@given(p=page_parameters)
def test_the_functions_give_the_librarys_numbers(call, p):
    X = stream(p["sorted"])
    if p["n"] < 2:
        assert call("run", X.tolist(), p, p["k"]) == {"refused": refusal_of_library(X, p), "steps": []}
        return
    for shown, expected in zip(steps_of(call, X, p, p["k"]), by_library(X, p, p["k"]), strict=True):
        assert_same(shown, expected, X, p)


@settings(max_examples=150, deadline=None)
@given(case=hostile())
def test_the_functions_give_the_librarys_numbers_on_hostile_data(call, case):
    X, p = case
    for shown, expected in zip(steps_of(call, X, p, 5), by_library(X, p, 5), strict=True):
        assert_same(shown, expected, X, p)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_gives_exactly_beta(call, kind):
    X = np.full((7, 2), 0.1)
    for step in steps_of(call, X, START | {"n": 7, "eps": 0, "beta": 0.3, "kind": kind}, 3):
        assert step["batch_var"] == [0, 0]
        np.testing.assert_array_equal(step["train"], 0.3)


def run_python(code):
    """The names that the Python code of the page leaves behind."""
    names = {}
    exec(code, names)
    return names


@with_traps
@settings(max_examples=20, deadline=None)
@given(p=page_parameters)
def test_the_python_code_gives_the_same(call, p):
    X, code = stream(p["sorted"]), call("python", p)
    if p["n"] < 2:
        with pytest.raises(ValueError, match=re.escape(refusal_of_library(X, p))):
            run_python(code)
        return
    names, shown = run_python(code), steps_of(call, X, p, p["k"])[-1]
    if p["kind"] == "layer":
        expected = {name: names[name] for name in ("running_mean", "running_var")}
    else:
        expected = {name: getattr(names["bn"], f"{name}_") for name in ("running_mean", "running_var")}
    expected |= {"train": names["y_train"], "inference": names["y_inference"], "gap": names["gap"]}
    assert_same(shown, expected, X, p)


@given(st.floats(-1e300, 1e300))
def test_five_digits_are_shown_and_they_are_right(call, v):
    text = call("show", v)
    assert float(text) == pytest.approx(v, rel=0.5e-4, abs=0)
    assert len(text) <= 12


def contrast(a, b):
    """Ratio of WCAG 2.2, 1.4.3."""
    luminance = []
    for color in (a, b):
        digits = color if len(color) == 6 else "".join(c + c for c in color)
        rgb = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        luminance.append(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    return (max(luminance) + 0.05) / (min(luminance) + 0.05)


def test_colours_stand_out_in_both_schemes():
    schemes = re.findall(r":root \{(.*?)\}", (HERE / "explore.css").read_text(), flags=re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        color = dict(re.findall(r"--(\w+): #(\w+);", scheme))
        for ground in ("back", "card"):
            assert all(contrast(color[name], color[ground]) >= 4.5 for name in ("text", "soft"))
            assert all(
                contrast(color[name], color[ground]) >= 3 for name in ("batch", "running", "gap", "off", "focus")
            )
        assert contrast(color["text"], color["note"]) >= 4.5


# The page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary, service = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (binary and service):
        pytest.skip("needs chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    switches = [
        "headless",
        "hide-scrollbars",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
    ]
    switches += ["disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}"]
    for switch in switches:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


class Page:
    """The page as a user has it, without a network."""

    def __init__(self, driver):
        self.driver = driver
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)

    def open(self):
        self.media()
        self.driver.get((HERE / "index.html").as_uri())
        return self

    def media(self, width=1280, scheme="light", motion="no-preference"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def find(self, css):
        return self.driver.find_element("css selector", css)

    def js(self, code, *args):
        return self.driver.execute_script(code, *args)

    def press(self, css, *keys):
        self.find(css).send_keys(*keys)

    def move(self, name, value):
        """Set one control as a hand does: the value, then the event of input."""
        set_it = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        if name == "sorted":
            if self.find("#sorted").is_selected() != value:
                self.find("#sorted").click()
        elif name == "kind":
            self.find(f"input[value={value}]").click()
        else:
            place = (-9 if value == 0 else round(np.log10(value))) if name == "eps" else value
            place = round(np.log2(value)) if name == "halflife" else place
            self.js(set_it, self.find(f"#{name}"), str(place))

    def numbers(self):
        """Numbers in full and as shown; results as they are drawn; words."""
        full, text, drawn, words = self.js(
            """const named = [...document.querySelectorAll("[data-name]")];
            const by = (list, key, value) => Object.fromEntries(list.map((e) => [key(e), value(e)]));
            return [by(named, (e) => e.dataset.name, (e) => e.dataset.value),
                by(named, (e) => e.dataset.name, (e) => e.innerText),
                by([...document.querySelectorAll("svg")], (e) => e.id, (e) => e.dataset.values),
                by([...document.querySelectorAll("#refusal, #python, #notes")], (e) => e.id,
                    (e) => e.checkVisibility() ? e.innerText : "")]"""
        )
        load = {name: json.loads(value) for name, value in (full | drawn).items()}
        return load, text, words

    def assert_shows(self, p):
        X = stream(p["sorted"])
        full, text, words = self.numbers()
        assert "".join(words["python"].split()) == "".join(self.js("return bn.python(arguments[0])", p).split())
        batch = X.take(range((p["k"] - 1) * p["n"], p["k"] * p["n"]), axis=0, mode="wrap")
        np.testing.assert_array_equal(full["data"], batch)
        if p["n"] < 2:
            assert refusal_of_library(X, p) in words["refusal"]
            assert full["gap"] is full["train"] is full["inference"] is full["running_mean.alcohol"] is None
            assert text["gap"] == text["batch_mean.alcohol"] == "\u2013"
            return
        assert words["refusal"] == ""
        steps = by_library(X, p, N_BATCHES)
        now = steps[p["k"] - 1]
        everything = BatchNormTransformer().fit(X)
        result = BatchNormTransformer().fit(now["all"])
        now |= {"whole_mean": everything.mean_, "whole_var": everything.var_}
        now |= {"inference_mean": result.mean_, "inference_var": result.var_}
        shown = {name: np.transpose(full[name]) for name in ("train", "inference")} | {
            n: full[n] for n in ("gap", "off")
        }
        for name in ("batch", "running", "whole"):
            for kind in ("mean", "var"):
                shown[f"{name}_{kind}"] = [full[f"{name}_{kind}.{feature}"] for feature in FEATURES]
        assert_same(shown, now, X, p)
        scale = 1e-12 + rounding(X, now, p)
        for name in ("inference_mean", "inference_var"):
            shown[name] = [full[f"{name}.{feature}"] for feature in FEATURES]
            np.testing.assert_allclose(shown[name], now[name], rtol=scale, atol=scale * np.abs(now["all"]).max())
        for (gap, off), step in zip(full["curve"], steps, strict=True):
            assert_same({"gap": gap, "off": off}, step, X, p)
        for name, value in text.items():
            kind, _, feature = name.partition(".")
            expected = now[kind][FEATURES.index(feature)] if feature else now[kind]
            atol = 0 if kind.startswith(("batch", "running", "whole")) else scale * (1 + np.abs(now["all"]).max())
            assert float(value) == pytest.approx(expected, rel=0.5e-4, abs=atol), name


@pytest.fixture(scope="module")
def kept(browser):
    """For all examples of a test, so that each starts where another left the page."""
    return Page(browser).open()


@pytest.fixture
def page(browser):
    page = Page(browser).open()
    yield page
    assert browser.get_log("browser") == []
    assert page.js("return performance.getEntriesByType('resource').every((e) => /^(file|data):/.test(e.name))")


def test_the_page_opens_with_the_librarys_numbers(page):
    page.assert_shows(START)


@with_traps
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])  # a smaller case takes minutes
@given(p=page_parameters)
def test_every_control_moves_the_page_to_the_librarys_numbers(kept, p):
    for name, value in p.items():
        kept.move(name, value)
    kept.assert_shows(p)
    assert kept.driver.get_log("browser") == []


def test_sliders_follow_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.press("#n", Keys.END)
    page.press("#gamma", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.press("#beta", Keys.HOME)
    page.press("#eps", Keys.ARROW_LEFT)
    page.press("#momentum", *[Keys.ARROW_LEFT] * 3)
    page.press("#sorted", Keys.SPACE)
    page.press("#k", *[Keys.ARROW_RIGHT] * 4)
    p = START | dict(n=64, gamma=1.2, beta=-3, eps=1e-6, momentum=0.87, sorted=True, k=16)
    page.assert_shows(p)
    page.press("input[value=transformer]", Keys.ARROW_DOWN)
    page.assert_shows(p | {"kind": "layer"})
    page.press("#eps", Keys.HOME)
    page.press("#halflife", Keys.ARROW_LEFT)
    p["halflife"] = 32
    page.assert_shows(p | {"kind": "layer", "eps": 0.0})
    page.press("#n", Keys.HOME)
    page.assert_shows(p | {"kind": "layer", "eps": 0.0, "n": 1})


def test_steps_go_on_and_back_and_end(page):
    from selenium.webdriver.common.keys import Keys

    for k in (13, 14, 15):
        page.press("#step", Keys.ENTER)
        page.assert_shows(START | {"k": k})
    page.press("#back", Keys.SPACE)
    page.assert_shows(START | {"k": 14})
    page.press("#k", Keys.END)
    page.assert_shows(START | {"k": N_BATCHES})
    assert not page.find("#step").is_enabled()
    page.press("#k", Keys.HOME)
    page.assert_shows(START | {"k": 1})
    assert not page.find("#back").is_enabled()


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_play_steps_until_it_is_stopped_and_goes_without_motion_if_asked(page):
    def k():
        return page.js("return document.getElementById('k').valueAsNumber")

    page.find("#play").click()
    assert eventually(lambda: k() >= 14)
    page.find("#play").click()
    stopped_at = k()
    page.assert_shows(START | {"k": stopped_at})
    time.sleep(0.6)
    assert k() == stopped_at
    page.find("#play").click()
    page.media(motion="reduce")
    assert eventually(lambda: not page.find("#play").is_displayed())
    stopped_at = k()
    time.sleep(0.6)
    assert k() == stopped_at


def test_reset_brings_back_the_start(page):
    before = page.numbers()
    elsewhere = dict(n=3, gamma=-2, beta=1, eps=1.0, momentum=0.2, halflife=4, sorted=True, kind="layer", k=50)
    for name, value in elsewhere.items():
        page.move(name, value)
    assert page.numbers() != before
    page.find("#reset").click()
    assert page.numbers() == before


def test_the_traps_show_what_they_say(page):
    def after(number):
        button = page.driver.find_elements("css selector", "[data-try]")[number]
        button.click()
        full, _, words = page.numbers()
        page.assert_shows(START | json.loads(button.get_attribute("data-try")))
        return full, words["notes"]

    start = page.numbers()[0]
    tiny, note = after(0)
    assert "50 %" in note
    assert np.mean(tiny["curve"][20:], axis=0)[0] > 1.5 * np.mean(start["curve"][20:], axis=0)[0]
    in_order, note = after(1)
    assert "Sorted stream" in note
    page.move("n", 2)
    assert "Small batch" not in page.numbers()[2]["notes"]  # its share is that of rows in random order
    assert np.mean(in_order["curve"], axis=0)[1] > 4 * np.mean(start["curve"], axis=0)[1]
    layer, note = after(2)
    assert "59 %" in note
    assert layer["gap"] > 4 * start["gap"]
    large, note = after(3)
    assert "squared units" in note
    assert large["inference_var.alcohol"] < 0.01 < 0.9 < large["inference_var.proline"]
    exact, note = after(4)
    assert "all wines seen so far" in note
    assert exact["curve"][-1][1] < 0.1 < np.mean(in_order["curve"], axis=0)[1]
    recent, note = after(5)
    assert "mostly the last 16 rows" in note
    assert np.mean(recent["curve"], axis=0)[1] > 4 * np.mean(exact["curve"][12:], axis=0)[1]


def test_everything_is_named_and_reached_by_the_tab_key(page):
    from selenium.webdriver.common.keys import Keys

    controls = page.driver.find_elements("css selector", "input, button, [tabindex='0']")
    assert all(control.accessible_name for control in controls)
    assert all(svg.accessible_name for svg in page.driver.find_elements("css selector", "svg"))
    reached = set()
    for _ in range(len(controls) + 2):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        focus = page.driver.switch_to.active_element
        reached.add(focus.id)
        assert (
            focus.tag_name == "body" or page.js("return getComputedStyle(arguments[0]).outlineStyle", focus) == "solid"
        )
    others = page.driver.find_elements("css selector", "input[type=radio]:not(:checked)")
    assert {control.id for control in controls} - reached == {other.id for other in others}  # by the arrow keys


def test_copy_gives_the_code(page):
    page.js("window.copied = null; navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.find("#copy").click()
    assert page.js("return window.copied") == page.js("return bn.python(bn.START)")
    assert page.find("#copied").text == "Copied."


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_cut_off(page, width, scheme, tmp_path):
    page.media(width, scheme)
    page.driver.refresh()
    folder = Path(os.environ.get("BNCPU_PAGE_SHOTS", tmp_path))
    for name, more in (
        ("start", {}),
        ("layer", {"kind": "layer", "k": 5}),
        ("halflife", {"kind": "halflife"}),
        ("refused", {"n": 1}),
    ):
        page.js("page.write(arguments[0])", START | more)
        assert page.js("return document.documentElement.scrollWidth") <= width
        inside = """const texts = [...document.querySelectorAll("svg text, table, figcaption, label, button, .key")];
        return texts.filter((e) => {
            const box = e.getBoundingClientRect();
            const around = (e.ownerSVGElement || e.parentElement).getBoundingClientRect();
            return box.width && (box.left < around.left - 0.5 || box.right > around.right + 0.5);
        }).map((e) => e.outerHTML)"""
        assert page.js(inside) == []
        picture = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (folder / f"page-{width}-{scheme}-{name}.png").write_bytes(base64.b64decode(picture["data"]))
