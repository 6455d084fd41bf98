"""The report: what it says against the run, what it escapes, and how it behaves in a real browser, offline."""

import html
import re
import shlex

import pytest
import torch
from torch import nn

import gsm_lab as gl
from gsm_lab import knobs
from gsm_lab.cli import commands, parser
from gsm_lab.cli.report import EVENTS_SHOWN, recipe, report
from gsm_lab.cli.summary import results
from gsm_lab.figures import dashboard
from gsm_lab.wording import number

NASTY = '<img src=x onerror="alert(1)">&</script>'


@pytest.fixture(scope="module")
def moved() -> gl.Run:
    """A run whose knobs moved, as in the playground."""
    run = gl.Run(pretrain=1, epochs=3, compression=20)
    run.step(20)
    run.set(compression=40, momentum=0.95)
    run.step(10)
    run.set(lr=0.05)
    run.train(progress=False)
    return run


def nasty() -> gl.Run:
    """Where all names are somebody else's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("</script><b>bold", nn.Linear(6, 5))
        model.add_module("last", nn.Linear(5, 3))
        x, y = torch.rand(90, 6), torch.arange(90) % 3
    return gl.Run(model, gl.Dataset(x, y, x[:30], y[:30], name=NASTY), compression=4, pretrain=1, batch_size=10)


@pytest.fixture(scope="module")
def page(moved) -> str:
    return report(moved)


def words(page: str) -> str:
    """The text of a page without scripts, styles and tags."""
    text = re.sub(r"<(script|style)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


# ------------------------------------------------------------------------------------------------ what it says


def test_results_are_those_of_the_run(moved):
    before = [p.clone() for p in moved.model.parameters()]
    found = results(moved)
    assert (found.dense, found.magnitude) == (moved.base, moved.magnitude)
    assert (found.live, found.cut) == (moved.evaluate(), moved.evaluate(cut=True))
    assert (found.nonzeros, found.weights) == (266_200 // 40, 266_200)
    assert sum(kept for _, kept in found.layers.values()) == found.nonzeros
    assert {name: size for name, (size, _) in found.layers.items()} == moved.history.layers
    assert all(torch.equal(a, b) for a, b in zip(before, moved.model.parameters(), strict=True))


def test_title_states_the_finding(moved, page):
    live, cut = moved.evaluate(), moved.evaluate(cut=True)
    costs = f"costs {100 * (live - cut):.2f} points" if live > cut else "costs nothing"
    finding = f"At 40x the cut {costs}: {100 * cut:.2f}% test accuracy with 6,655 of 266,200 weights"
    assert f"<title>{finding}</title>" in page and f"<h1>{finding}</h1>" in page


def test_a_run_that_was_cut_too_early_says_so_among_its_results(moved, page):
    early = results(moved).early
    assert "passive weights halve in" in early
    assert words(page).count(f"too early to cut {early}") == 1


def test_page_holds_results_settings_and_moves(moved, page):
    text = words(page)
    for share in (moved.base, moved.magnitude, moved.evaluate(), moved.evaluate(cut=True)):
        assert f" {100 * share:.2f}%" in text
    assert "cut to 20x by magnitude" in text, "what it was when the gate closed"
    assert "40x, 6,655 of 266,200" in text
    for name, knob in knobs.KNOBS.items():
        assert f" {name} {number(moved.knobs[name])} {knob.unit}".rstrip() in text and knob.help in text
    for move in ("20 0.91 compression 20 40", "20 0.91 momentum 0.9 0.95", "30 1.36 lr 0.1 0.05"):
        assert move in text
    assert f"digest {moved.data.digest}" in text and f"torch {torch.__version__}" in text
    assert "one sample is 0.28 points" in text


def test_many_moves_are_cut_short():
    run = nasty()
    for i in range(EVENTS_SHOWN + 3):
        run.step()
        run.set(lr=0.01 + 0.001 * i)
    assert "and 3 more" in words(report(run))


def test_a_run_that_has_not_begun_and_one_that_is_still_dense():
    run = gl.Run(pretrain=2)
    assert words(report(run)).startswith("Still dense after 0 steps: ")
    run.pretrain(5)
    text = words(report(run))
    assert text.startswith("Still dense after 5 steps: ") and "What happened" not in text
    run.pretrain()
    assert words(report(run)).startswith("After 0 of 3,300 steps, at 60x the cut costs ")


# ------------------------------------------------------------------------------------------------ how to repeat it


def equal(a: gl.Run, b: gl.Run) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return a.steps == b.steps and all(torch.equal(p, q) for p, q in pairs)


def test_recipe_of_moved_knobs_is_python_that_repeats_it(moved):
    space: dict = {}
    exec(recipe(moved), space)
    assert equal(space["run"], moved) and space["run"].history.events == moved.history.events


def test_recipe_of_a_plain_run_is_its_command():
    run = gl.Run(pretrain=1, epochs=1, weight_decay=0.0012345678, seed=5)
    run.train(progress=False)
    program, *line = shlex.split(recipe(run))
    args = vars(parser.parser(commands.COMMANDS).parse_args(line))
    assert program == "gsm-lab" and args["threads"] == torch.get_num_threads()
    assert {name: args[name] for name in knobs.KNOBS} == run.knobs


def test_recipe_has_the_threads_of_the_steps_not_of_now():
    run = gl.Run(pretrain=0, epochs=1)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        run.step(2)
    finally:
        torch.set_num_threads(before)
    assert f"torch.set_num_threads({before + 1})" in recipe(run)


@pytest.mark.parametrize("steps", [0, 7])
def test_recipe_of_a_run_that_stopped_early(steps):
    run = gl.Run(pretrain=1, epochs=4)
    run.pretrain(30 if steps else 9)
    run.step(steps)
    space: dict = {}
    exec(recipe(run), space)
    assert equal(space["run"], run) and space["run"].dense_steps == run.dense_steps


def test_recipe_with_data_and_model_of_ones_own():
    run = nasty()
    run.step(3)
    other = nasty()
    space = {"my_model": other.model, "my_data": other.data}
    exec(recipe(run), space)
    assert equal(space["run"], run)


@pytest.mark.parametrize("value", [60.0, 0.1, 1e-5, 0.123456789012, 7, "digits", 1 / 3])
def test_numbers_lose_nothing(value):
    assert type(value)(number(value)) == value


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture
def view(chromium, tmp_path):
    """Open a page as a file, without a network; gives the page, and what it asked for and complained about."""
    opened = []

    def open_(text: str, width: int = 1280):
        (tmp_path / "report.html").write_text(text, encoding="utf-8")
        context = chromium.new_context(offline=True, viewport={"width": width, "height": 900})
        opened.append(context)
        page = context.new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("dialog", lambda dialog: page.said.append(f"dialog: {dialog.message}"))
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_
    for context in opened:
        context.close()


def drawn(page):
    """The page, once its plots are there."""
    page.wait_for_selector("#plots .main-svg")
    return page


def until(page, condition: str) -> None:
    """Wait for something in the page. (Playwright's own way is `eval`, which the page's policy forbids.)"""
    page.evaluate(f"new Promise(done => {{ const look = () => {condition} ? done() : setTimeout(look); look(); }})")


def boxes(page, selector: str) -> list[dict[str, float]]:
    return [box for one in page.locator(selector).all() if (box := one.bounding_box()) and box["height"]]


def columns(page) -> int:
    """How many plots stand beside one another: those with the topmost label under the x axis."""
    tops = [round(box["y"]) for box in boxes(page, "#plots [class^=g-x][class$=title]")]
    assert len(tops) == 4
    return tops.count(min(tops))


def width(page) -> float:
    return page.evaluate("document.scrollingElement.scrollWidth")


def test_page_is_interactive_and_asks_for_nothing(view, page, moved):
    shown, traces = drawn(view(page)), dashboard(moved.history).data
    assert shown.locator("#plots .scatterlayer .trace").count() == len(traces)
    assert shown.evaluate("plots.data.map(trace => trace.name)") == [trace.name for trace in traces]
    loss = shown.evaluate("Array.from(plots.calcdata[0], point => point.y)")
    assert loss == pytest.approx([float(y) for y in traces[0].y])
    shown.locator("#plots .legend .legendtoggle").first.click()
    until(shown, "plots.data[0].visible === 'legendonly'")
    assert shown.asked == [shown.url] and shown.said == []


def test_page_may_not_ask_for_anything(view, page):
    shown = view(page)
    assert shown.evaluate("fetch('https://example.org').then(() => 'went out', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in shown.said), "refused by policy, not for want of a network"


def test_page_fits_its_width_and_follows_it(view, page):
    shown = drawn(view(page, 1280))
    assert width(shown) == 1280 and columns(shown) == 2
    for narrow in (420, 320):
        shown.set_viewport_size({"width": narrow, "height": 900})
        until(shown, f"plots.querySelector('.main-svg').getBoundingClientRect().width < {narrow}")
        assert width(shown) == narrow and columns(shown) == 1
    assert shown.said == []


def test_narrow_page_prints_wide_and_no_title_overlaps_a_thing(view, page):
    shown = drawn(view(page, 420))
    assert width(shown) == 420 and columns(shown) == 1
    titles = [boxes(shown, f'#plots .annotation[data-index="{i}"]')[0] for i in range(4)]
    others = boxes(shown, "#plots .infolayer > [class^=legend]") + boxes(shown, "#plots [class^=g-x][class$=title]")
    assert len(others) == 3 + 4
    for title in titles:
        over = [b for b in others if b["y"] < title["y"] + title["height"] and title["y"] < b["y"] + b["height"]]
        assert over == []
        assert title["x"] >= 0 and title["x"] + title["width"] <= 420
    shown.evaluate("addEventListener('beforeprint', () => { window.printed = plots.layout.width; })")
    assert len(shown.pdf(format="A4")) > 10_000
    assert shown.evaluate("printed") == 1000
    until(shown, "plots.layout.height === narrow.height")  # afterwards as before
    assert shown.asked == [shown.url] and shown.said == []


def test_names_stay_names(view):
    run = nasty()
    run.step(60)
    text = report(run)
    assert text.count("</script>") == 2, "plotly's and ours"
    shown = drawn(view(text))
    assert shown.locator("img").count() == 0 and shown.said == [] and shown.asked == [shown.url]
    assert NASTY in shown.locator("body").inner_text()
    assert "</script><b>bold.weight" in shown.locator("table").nth(1).inner_text()
