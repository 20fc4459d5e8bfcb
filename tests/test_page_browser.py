"""The page in a real browser: headless Chromium, where one is installed."""

import base64
import re
import shutil

import pages
from playwright import sync_api as playwright
import pytest

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
  with pages.serve(*flags) as (port, *_):
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
  page.goto(f"http://127.0.0.1:{port}/")
  page.wait_for_selector("#search-section:not([hidden])")
  yield page
  page.close()
  # The browser's own line about an answer of 4xx, which the page shows.
  wrong = [line for line in wrong if "Failed to load resource" not in line]
  assert not wrong
  schemes = (f"http://127.0.0.1:{port}/", "blob:", "data:")
  assert all(url.startswith(schemes) for url in asked)


def percent(text):
  return float(re.sub("[<>%\\s]", "", text)) / 100


def test_images_are_dropped_labels_typed_and_scores_read(page, place):
  file = place.photos / "red.png"
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
  assert page.locator("#chosen li").count() == 3
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
    picture = page.locator(".result > img").nth(number)
    assert picture.evaluate("image => image.naturalWidth") == 90
  bad = page.locator(".result").nth(2).inner_text()
  assert "Skipped: is no image that can be read" in bad
  explained = page.inner_text("#explained")
  assert "sigmoid" in explained and "softmax" in explained


def test_a_sentence_finds_pictures(page, place):
  page.get_by_role("searchbox").fill("a red square")
  page.keyboard.press("Enter")
  page.wait_for_selector("#found li")
  cosines = place.rows @ place.model.embed_texts(["a red square"])[0]
  keys = [place.keys[i] for i in (-cosines).argsort()]
  assert page.locator("#found .name").all_text_contents() == keys
  pictures = page.locator("#found img")
  shown = 0
  for key, picture in zip(keys, pictures.all(), strict=True):
    picture.scroll_into_view_if_needed()
    page.wait_for_function("x => x.complete", arg=picture.element_handle())
    width = picture.evaluate("image => image.naturalWidth")
    assert bool(width) == (key.removesuffix(".png") in pages.COLOURS)
    shown += bool(width)
  assert shown == len(pages.COLOURS)


def test_a_mistake_is_said_and_can_be_mended(page, place):
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
  page.set_input_files("#images", [place.photos / "red.png"] * 5)
  page.get_by_role("textbox", name="Labels").fill("w" * 300)
  page.get_by_role("button", name="Score").click()
  page.wait_for_selector(".result table")
  page.get_by_role("searchbox").fill("a")
  page.keyboard.press("Enter")
  page.wait_for_selector("#found li")
  for picture in page.locator("#found img").all():
    picture.scroll_into_view_if_needed()
  page.wait_for_function("() => [...document.images].every((x) => x.complete)")
  root = "document.documentElement"
  assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_every_control_has_a_name(page, place):
  page.set_input_files("#images", [place.photos / "red.png"])
  page.locator("#chosen li").wait_for()
  for control in page.locator("input, textarea, button").all():
    name = control.evaluate(
      """x => x.ariaLabel || x.labels?.[0]?.innerText || x.innerText"""
    )
    assert name.strip()
  for picture in page.locator("img").all():
    assert picture.get_attribute("alt") is not None
