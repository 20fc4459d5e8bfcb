"""The page in a real browser: headless Chromium, where one is installed."""

import base64
import re
import shutil

import numpy as np
import pages
from playwright import sync_api as playwright
import pytest

from big_siglip.dense import pictures
from big_siglip.trained.vectors import sigmoid

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LABELS = ["a red square", "<b>blue</b>", "something green"]
FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return pages.make_place(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def port(place):
  flags = [f"--checkpoint={place.checkpoint}", f"--embeddings={place.vectors}"]
  # As behind a proxy, at a path of its own.
  with pages.serve(*flags, "--prefix=/siglip") as (port, *_):
    yield port


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  found = next(filter(None, map(shutil.which, NAMES)), None)
  if found is None:
    pytest.skip(f"none of {', '.join(NAMES)} is installed")
  with playwright.sync_playwright() as p:
    context = p.chromium.launch_persistent_context(
      tmp_path_factory.mktemp("profile"),
      executable_path=found,
      args=FLAGS,
      viewport={"width": 1100, "height": 900},
    )
    context.set_default_timeout(60_000)
    yield context
    context.close()


@pytest.fixture
def page(browser, port):
  """The page, opened; nothing may go wrong in it or lead elsewhere."""
  page = browser.new_page()
  wrong, asked = [], []
  page.on("pageerror", lambda error: wrong.append(str(error)))
  page.on(
    "console",
    lambda line: line.type == "error" and wrong.append(line.text),
  )
  page.on("request", lambda request: asked.append(request.url))
  page.goto(f"http://127.0.0.1:{port}/siglip")
  page.wait_for_selector("#search-panel:not([hidden])")
  page.wait_for_selector("#compiling", state="hidden")
  yield page
  page.close()
  # The browser's own line about an answer of 4xx, which the page shows.
  wrong = [line for line in wrong if "Failed to load resource" not in line]
  assert not wrong
  schemes = (f"http://127.0.0.1:{port}/siglip", "blob:", "data:")
  assert all(url.startswith(schemes) for url in asked)


def open_labels(page):
  page.get_by_role("tab", name="Labels").click()
  page.wait_for_selector("#labels-panel:not([hidden])")


def found(page, answer=0):
  """Returns the keys of what was found, the nearest first."""
  names = page.locator(".answer").nth(answer).locator(".name")
  return names.all_text_contents()


def ranked(place, query, without=()):
  """Returns the keys of all rows, those nearest to a query first."""
  order = (-(place.rows @ query)).argsort()
  return [place.keys[i] for i in order if place.keys[i] not in without]


def search(page, *lines):
  query = page.get_by_role("textbox", name="Sentences")
  query.fill("\n".join(lines))
  query.press("Enter")
  page.wait_for_function(
    "n => document.querySelectorAll('.answer').length === n", arg=len(lines)
  )
  playwright.expect(page.locator("#search-status")).to_contain_text("The best")


def percent(text):
  return float(re.sub("[<>%\\s]", "", text)) / 100


def test_images_are_dropped_labels_typed_and_scores_read(page, place):
  file = place.photos / "red.png"
  open_labels(page)
  page.set_input_files("#images", [file])
  # As a hand would: a name is text, whatever it says.
  page.evaluate(
    """(data) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const name = "<img src=x onerror=alert(1)>.png";
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, { type: "image/png" }));
      transfer.items.add(new File(["none"], "bad.png"));
      const options = { dataTransfer: transfer, bubbles: true };
      document.body.dispatchEvent(new DragEvent("drop", options));
    }""",
    base64.b64encode((place.photos / "blue.png").read_bytes()).decode(),
  )
  assert page.locator("#images-chosen li").count() == 3
  # The keyboard alone, from the labels on.
  page.get_by_role("textbox", name="Labels").focus()
  page.keyboard.type("\n".join(LABELS))
  page.keyboard.press("Tab")
  page.keyboard.press("Enter")
  page.wait_for_selector(".result:nth-child(3)")
  assert re.search(
    "^2 of 3 images scored in", page.inner_text("#classify-status")
  )
  expected = place.model.probabilities(
    [file, place.photos / "blue.png"], LABELS
  )
  names = page.locator(".result h3").all_inner_texts()
  assert names == ["red.png", "<img src=x onerror=alert(1)>.png", "bad.png"]
  for number, row in enumerate(expected):
    lines = page.locator(".result").nth(number).locator("tbody tr")
    found = {}
    for line in lines.all():
      label, alone, share = line.locator("th, td").all_inner_texts()
      found[label] = percent(alone)
      assert 0 <= percent(share) <= 1
    assert list(found) == [LABELS[i] for i in (-row).argsort()]
    for label, probability in zip(LABELS, row, strict=True):
      assert found[label] == pytest.approx(probability, abs=1e-4)
    shares = lines.locator("td:last-child").all_inner_texts()
    assert sum(map(percent, shares)) == pytest.approx(1, abs=2e-4)
    picture = page.locator(".result img").nth(number)
    assert picture.evaluate("image => image.naturalWidth") == 90
  bad = page.locator(".result").nth(2).inner_text()
  assert "Skipped: is no image that can be read" in bad
  explained = page.inner_text("#explained")
  assert "sigmoid" in explained and "softmax" in explained


def colours(page):
  """Returns the middle of each patch on the canvas, hw3; None: it is hidden."""
  canvas = page.locator("canvas")
  if not canvas.is_visible():
    return None
  pixels = canvas.evaluate(
    """(canvas) => {
      const { width, height } = canvas;
      const context = canvas.getContext("2d");
      return [0.25, 0.75].map((y) => [0.25, 0.75].map((x) =>
        [...context.getImageData(x * width, y * height, 1, 1).data]));
    }"""
  )
  found = np.array(pixels)
  assert (found[..., 3] == 255).all()
  return found[..., :3]


def test_a_label_that_is_pointed_at_shows_where_it_fires(page, place):
  file = place.photos / "red.png"
  open_labels(page)
  page.set_input_files("#images", [file])
  page.get_by_role("textbox", name="Labels").fill("\n".join(LABELS))
  page.get_by_role("button", name="Score").click()
  (patches,) = place.model.embed_patches([file], kind="text")  # [2, 2, E]
  logits = place.model.logit_scale * (
    patches @ place.model.embed_texts(LABELS).T
  )
  logits += place.model.logit_bias
  asked = []
  page.on("request", lambda request: asked.append(request.url))

  def assert_shows(number, whole=False):
    own = logits[..., number]
    playwright.expect(page.locator(".legend")).to_contain_text(
      f"Patches for “{LABELS[number]}”: "
    )
    expected = pictures.heat(own, own.min(), own.max())
    if whole:
      expected = pictures.heat(sigmoid(own), 0, 1)
    # Logits come with four digits behind the point.
    np.testing.assert_allclose(colours(page), expected, atol=4)

  labels = [page.get_by_role("button", name=label) for label in LABELS]
  assert colours(page) is None
  labels[0].hover()
  assert_shows(0)
  labels[2].hover()
  assert_shows(2)
  page.mouse.move(0, 0)
  assert colours(page) is None
  labels[1].focus()  # By the keyboard, as a name that is markup.
  assert_shows(1)
  page.keyboard.press("Escape")
  assert colours(page) is None
  labels[1].click()  # It stays, as on a phone.
  page.mouse.move(0, 0)
  labels[1].blur()
  assert_shows(1)
  page.get_by_label("Colours span").select_option("whole")
  assert_shows(1, whole=True)
  labels[1].click()
  page.mouse.move(0, 0)
  assert colours(page) is None
  maps = [url for url in asked if url.endswith("/siglip/api/maps")]
  assert len(maps) == 1, "one request has the maps of all labels"


def test_a_sentence_finds_pictures_with_their_captions(page, place):
  search(page, "a red square")
  keys = ranked(place, place.model.embed_texts(["a red square"])[0])
  assert found(page) == keys
  shown = 0
  for key, item in zip(keys, page.locator(".found li").all(), strict=True):
    item.scroll_into_view_if_needed()
    item.locator(".missing, img").wait_for()
    page.wait_for_function(
      "x => x.querySelector('.missing') || x.querySelector('img').complete",
      arg=item.element_handle(),
    )
    picture = item.locator("img")
    there = picture.count() and picture.evaluate("x => x.naturalWidth")
    assert bool(there) == (key.removesuffix(".png") in pages.COLOURS)
    shown += bool(there)
  assert shown == len(pages.COLOURS)
  red = page.locator(".found li").nth(keys.index("red.png"))
  # Whatever they say, they are text.
  assert red.locator(".caption").first.inner_text() == pages.CAPTIONS[0]
  red.get_by_text("1 more").click()
  assert red.locator(".caption").all_inner_texts() == list(pages.CAPTIONS)


def test_several_are_answered_each_or_together(page, place):
  texts = place.model.embed_texts(["something blue", "a tree"])
  search(page, "something blue", "a tree")
  for number, row in enumerate(texts):
    assert found(page, number) == ranked(place, row)
  page.get_by_label("what is near to all of them").check()
  page.get_by_role("button", name="Search", exact=True).click()
  page.wait_for_function(
    "() => document.querySelectorAll('.answer').length === 1"
  )
  assert found(page) == ranked(place, texts.sum(0))
  title = page.locator(".answer h3").inner_text()
  assert title == "“something blue” + “a tree”"


def test_what_is_similar_is_found_and_back_leads_back(page, place):
  search(page, "a tree")
  before = found(page)
  page.get_by_role("button", name="Similar to green.png").click()
  page.wait_for_function("() => location.hash.includes('like=')")
  row = place.rows[place.keys.index("green.png")]
  playwright.expect(page.locator(".answer h3")).to_contain_text("similar to")
  assert found(page) == ranked(place, row, without=["green.png"])
  assert page.locator("#like-chosen img").count() == 1
  address = page.url
  page.go_back()
  playwright.expect(page.locator(".answer h3")).to_have_text("“a tree”")
  assert found(page) == before
  page.goto("about:blank")  # As somebody else opens it.
  page.goto(address)
  playwright.expect(page.locator(".answer h3")).to_contain_text("similar to")
  assert found(page) == ranked(place, row, without=["green.png"])


def test_images_are_searched_by_when_chosen_or_pasted(page, place):
  page.set_input_files("#like", [place.photos / "blue.png"])
  page.get_by_role("button", name="Search", exact=True).click()
  page.wait_for_selector(".answer")
  assert found(page)[0] == "blue.png"
  assert page.locator(".found .own").first.inner_text() == "cosine 1.000"
  page.get_by_role("button", name="Remove blue.png").click()
  page.evaluate(
    """(data) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const clipboardData = new DataTransfer();
      const file = new File([bytes], "pasted.png", { type: "image/png" });
      clipboardData.items.add(file);
      const options = { clipboardData, bubbles: true };
      document.body.dispatchEvent(new ClipboardEvent("paste", options));
    }""",
    base64.b64encode((place.photos / "red.png").read_bytes()).decode(),
  )
  page.get_by_role("button", name="Search", exact=True).click()
  title = page.locator(".answer h3")
  playwright.expect(title).to_have_text("the image pasted.png")
  assert found(page)[0] == "red.png"


def test_columns_filter_what_is_found(page, place):
  page.get_by_text("Filter", exact=True).click()
  page.get_by_role("button", name="key", exact=True).click()
  page.keyboard.type("like 'r%'")
  search(page, "a tree")
  assert set(found(page)) == {"red.png", "ring.png"}
  page.get_by_label("Only where").fill("width >")
  page.keyboard.press("Enter")
  alert = page.locator("#search-error")
  playwright.expect(alert).to_contain_text("where=width >: ends where a value")


def test_the_keyboard_alone_is_enough(page, place):
  def focused():
    return page.evaluate(
      "() => document.activeElement.ariaLabel ?? document.activeElement.id"
    )

  page.keyboard.press("/")
  assert focused() == "query"
  page.keyboard.type("a tree")
  page.keyboard.press("Enter")
  page.wait_for_selector(".answer")
  for _ in range(20):  # One of all results can be tabbed to.
    page.keyboard.press("Tab")
    if focused().startswith("Similar to"):
      break
  first = focused()
  page.keyboard.press("ArrowRight")
  second = focused()
  page.keyboard.press("ArrowDown")
  below = focused()
  page.keyboard.press("ArrowUp")
  assert focused() == second
  page.keyboard.press("Home")
  assert focused() == first
  assert len({first, second, below}) == 3
  outline = page.evaluate(
    "() => getComputedStyle(document.activeElement).outlineStyle"
  )
  assert outline == "solid"
  page.keyboard.press("Enter")
  playwright.expect(page.locator(".answer h3")).to_contain_text("similar to")
  page.wait_for_function("() => document.activeElement.matches('.similar')")
  page.keyboard.press("Escape")
  assert focused() == "query"
  page.get_by_role("tab", name="Search").focus()
  page.keyboard.press("ArrowRight")
  assert focused() == "labels-tab"
  assert page.locator("#labels-panel").is_visible()


def test_a_mistake_is_said_and_can_be_mended(page, place):
  open_labels(page)
  score = page.get_by_role("button", name="Score")
  score.click()
  alert = page.locator("#classify-error")
  alert.wait_for(state="visible")
  assert alert.get_attribute("role") == "alert"
  playwright.expect(alert).to_have_text("images: choose at least one")
  bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no image"}
  page.set_input_files("#images", bad)
  for labels, expected in [
    ("\n".join(map(str, range(1_001))), "labels: 1,001 are too many"),
    ("\n \n", "labels: give at least one"),
    ("a\na", "labels: 'a' stands there twice"),
    ("a", "bad.png: is no image that can be read"),
  ]:
    page.get_by_role("textbox", name="Labels").fill(labels)
    score.click()
    playwright.expect(alert).to_contain_text(expected)
  page.get_by_role("button", name="Remove bad.png").click()
  page.set_input_files("#images", [place.photos / "red.png"])
  score.click()
  page.wait_for_selector(".result table")
  assert not alert.is_visible()


@pytest.mark.parametrize("width", [320, 700])
def test_nothing_sticks_out_of_a_narrow_window(page, place, width):
  page.set_viewport_size({"width": width, "height": 800})
  root = "document.documentElement"
  fits = f"{root}.scrollWidth <= {root}.clientWidth"
  page.get_by_text("Filter", exact=True).click()
  search(page, "a", "b" * 300)
  for picture in page.locator(".found li").all():
    picture.scroll_into_view_if_needed()
  page.wait_for_function("() => [...document.images].every((x) => x.complete)")
  assert page.evaluate(fits)
  open_labels(page)
  page.set_input_files("#images", [place.photos / "red.png"] * 5)
  page.get_by_role("textbox", name="Labels").fill("w" * 300)
  page.get_by_role("button", name="Score").click()
  page.wait_for_selector(".result table")
  assert page.evaluate(fits)
  for button in page.locator("button:visible, summary:visible").all():
    assert button.bounding_box()["height"] >= 24  # WCAG 2.5.8


def test_every_control_has_a_name(page, place):
  search(page, "a")
  page.set_input_files("#like", [place.photos / "red.png"])
  page.locator("#like-chosen li").wait_for()
  for control in page.locator("input, textarea, select, button").all():
    name = control.evaluate(
      """x => x.ariaLabel || x.labels?.[0]?.innerText || x.innerText ||
        x.textContent || x.labels?.[0]?.textContent"""
    )
    assert name.strip()
  for picture in page.locator("img").all():
    assert picture.get_attribute("alt") is not None
