"""The report, read as a browser reads it."""

import base64
import html.parser
import io
import json
import re
import shutil

from etils import epath
import ml_collections
import numpy as np
from PIL import Image
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import big_siglip
from big_siglip.data.sources import open_source
from big_siglip.datasets import scenes_draw
from big_siglip.dense.pictures import components
from big_siglip.errors import UserError
from big_siglip.evaluation import compare, rows
from big_siglip.report import (
  answers,
  axes,
  charts,
  curves,
  page,
  pool,
  resources,
  samples,
  wanted,
)
from big_siglip.report.opening import read_runs
from big_siglip.trained.vectors import sigmoid
from configs import dense

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = '<script>alert("caption")</script> & <img src=x onerror=alert(1)>'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
  """The elements of a page, and whether each was closed.

  Attributes:
    elements: (tag, attributes, text inside) in the order of their start.
    urls: whatever a browser could load.
  """

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.elements, self._open = [], []
    self.feed(text)
    self.close()
    assert not self._open, self._open

  def handle_starttag(self, tag, attrs):
    element = [tag, dict(attrs), ""]
    self.elements.append(element)
    if tag not in VOID:
      self._open.append(element)

  def handle_startendtag(self, tag, attrs):
    self.elements.append([tag, dict(attrs), ""])

  def handle_endtag(self, tag):
    assert self._open.pop()[0] == tag, tag

  def handle_data(self, data):
    for element in self._open:
      element[2] += data

  def all(self, tag, **wanted):
    return [
      (attributes, re.sub(r"\s+", " ", text).strip())
      for name, attributes, text in self.elements
      if name == tag
      and all(attributes.get(k.rstrip("_")) == v for k, v in wanted.items())
    ]

  def rows(self, caption):
    """Returns the cells of the table with this caption, a list a row."""
    tables_, current = [], None
    for tag, _, text in self.elements:
      text = re.sub(r"\s+", " ", text).strip()
      if tag == "table":
        current = {"rows": []}
        tables_.append(current)
      elif tag == "caption":
        current["caption"] = text
      elif tag == "tr":
        current["rows"].append([])
      elif tag in ("th", "td"):
        current["rows"][-1].append(text)
    (found,) = [t for t in tables_ if t.get("caption") == caption]
    return found["rows"]

  @property
  def urls(self):
    names = ("src", "href", "srcset", "data", "poster", "action")
    return [a[n] for _, a, _ in self.elements for n in names if a.get(n)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """A folder of coloured squares with captions, one of them malicious."""
  folder = tmp_path_factory.mktemp("photos")
  rows = ["image,caption"]
  for number in range(12):
    name = f"{number}.png"
    colour = np.random.default_rng(number).integers(0, 255, 3)
    pixels = np.full((90, 70, 3), colour, np.uint8)
    Image.fromarray(pixels).save(folder / name)
    caption = EVIL.replace('"', '""') if number == 0 else f"square {number}"
    rows.append(f'{name},"{caption}"')
  (folder / "captions.csv").write_text("\n".join(rows) + "\n")
  return folder


@pytest.fixture(scope="module")
def digits(short_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("report") / "digits"
  shutil.copytree(short_run, folder)
  return folder


@pytest.fixture(scope="module")
def model(digits):
  return big_siglip.load(str(digits))


@pytest.fixture(scope="module")
def shown(digits, tmp_path_factory):
  """The page of the run, and its text."""
  file = tmp_path_factory.mktemp("page") / "report.html"
  page.write_report([str(digits)], str(file), examples=360, price=2.0)
  text = file.read_text()
  return Page(text), text


@pytest.fixture
def copy(digits, tmp_path):
  """Returns a copy of the run without its checkpoints, to be changed."""

  def make(name, **changes):
    folder = tmp_path / name
    shutil.copytree(
      digits, folder, ignore=shutil.ignore_patterns("checkpoints")
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder

  return make


def render(*folders, price=None):
  """Returns the page of runs without pictures."""
  text = page.render(read_runs([str(f) for f in folders]), [], price)
  return Page(text)


def read_pool(spec, data):
  """Returns the pool of an evaluation of a run with this `config.data`."""
  config = {"evals": {"shown": spec}, "data": data}
  source = wanted.open_data(wanted.DataKey.of(spec, data), config, "shown")
  return pool.read_pool(source, 300)


def note(found):
  return " ".join(text for a, text in found.all("div", class_="note"))


def test_a_page_has_every_part(shown):
  found, _ = shown
  sections = [a["id"] for a, _ in found.all("section")]
  assert sections == [
    "overview",
    "evaluations",
    "curves",
    "examples",
    "skipped",
    "cost",
    "config",
  ]
  links = [a["href"].removeprefix("#") for a, _ in found.all("a")]
  assert links == sections
  overview = dict(found.rows("What was trained, and how far")[1:])
  assert overview["Progress"] == "finished: 6 steps"
  assert overview["Examples seen"] == "96"
  config = dict(found.rows("optimizer"))
  assert config["learning_rate"] == "0.001"


def test_numbers_are_those_of_the_run(shown, digits):
  lines = [
    json.loads(line)
    for line in (digits / "metrics.jsonl").read_text().splitlines()
  ]
  last = {k: v for line in lines for k, v in line.items()}
  found, _ = shown
  rows = dict(found.rows("The last value of every metric")[1:])
  told = rows["test/accuracy"].split(" %")[0]
  assert told == f"{100 * last['evals/test/accuracy']:.1f}"
  (loss,) = [
    json.loads(a["data-chart"])
    for a, text in found.all("figure")
    if text.startswith("loss")
  ]
  points = [(x, y) for x, y, *_ in loss["curves"][0]["points"]]
  logged = [(m["step"], m["loss"]) for m in lines if "loss" in m]
  assert points == logged


def test_evaluations_are_drawn_over_steps(shown, digits, copy):
  def points(found, title):
    """Returns (dash, [(x, y)]) of the curves of a chart."""
    (chart,) = [
      json.loads(a["data-chart"])
      for a, text in found.all("figure")
      if text.startswith(title)
    ]
    return [[(x, y) for x, y, *_ in c["points"]] for c in chart["curves"]]

  (run,) = read_runs([str(digits)])
  key = "evals/test/accuracy"
  assert [step for step, _ in run.points(key)] == [3, 6]
  assert points(shown[0], "test/accuracy") == [run.points(key)]
  # What a watcher writes; recall at several k shares a chart.
  folder = copy("watched")
  name = "evals/found/image_to_text/recall"
  at_1, at_5 = [(2, 0.0), (4, 0.0)], [(2, 0.75), (4, 1.0)]
  lines = [
    {"step": step, f"{name}@10": 1.0, f"{name}@5": five, f"{name}@1": one}
    for (step, one), (_, five) in zip(at_1, at_5, strict=True)
  ]
  lines[0] |= {f"evals/few/accuracy_{k}shot": 0.0 for k in (1, 10, 5)}
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "evaluations.jsonl").write_text(text)
  found = render(folder)
  at_10 = [(2, 1.0), (4, 1.0)]
  drawn = points(found, "found/image_to_text/recall")
  assert drawn == [at_1, at_5, at_10]
  # Numbers in names count as numbers, and an axis of shares starts at 0.
  rows = [row[0] for row in found.rows("The last value of every metric")]
  shots = [f"few/accuracy_{k}shot" for k in (1, 5, 10)]
  assert [row for row in rows if row in shots] == shots
  nothing = axes.Axes([(1, 0.0)], share=True, log=False)
  assert nothing.y(0.0) == axes.HEIGHT - axes.BOTTOM


def test_time_and_cost_are_those_of_starts_jsonl(shown, digits):
  start = json.loads((digits / "starts.jsonl").read_text())
  caption = "Of all starts together; waits between them do not count"
  rows = dict(shown[0].rows(caption)[1:])
  assert rows["Devices"] == f"{start['devices']} x cpu"
  hours = float(rows["Device-hours"])
  assert 0 < hours < 1
  assert rows["Cost, at 2 a device-hour"] == f"{2 * hours:,.2f}"
  assert start["versions"]["jax"] in rows["Versions"]


def test_a_page_needs_nothing_else(shown):
  found, text = shown
  assert all(url.startswith(("data:", "#")) for url in found.urls)
  assert not re.search(r"@import|url\(", text)
  assert len(found.all("script")) == 1
  (policy,) = [a["content"] for a, _ in found.all("meta") if "http-equiv" in a]
  assert policy.startswith("default-src 'none'")
  assert len(text) < 1_000_000


def test_a_page_speaks_to_those_who_cannot_see(shown):
  found, _ = shown
  pictures = found.all("img")
  assert len(pictures) > 40 and all(a["alt"] for a, _ in pictures)
  drawn = [a for a, _ in found.all("svg") if a.get("role") == "img"]
  assert len(drawn) >= 9
  assert all(" at " in a["aria-label"] for a in drawn)
  assert len(found.all("caption")) == len(found.all("table"))


def test_predictions_are_those_of_the_evaluator(shown, digits):
  accuracy = read_runs([str(digits)])[0].last("evals/test/accuracy")
  (text,) = [t for _, t in shown[0].all("p") if " of 360 right" in t]
  # On one device as on several: at most one of 360 images may change sides.
  assert abs(int(text.split()[0]) - 360 * accuracy) < 1.5
  cards = [t for a, t in shown[0].all("p") if a.get("class") == "answer"]
  assert len(cards) == 24
  assert all(" wrong " in card or " right " in card for card in cards)
  assert " wrong " in cards[0], "wrong ones come first"


def test_the_heat_map_holds_the_probabilities_of_the_model(shown, model):
  rows = shown[0].rows("Probability of each pair")[1:]
  texts = [row[0] for row in rows]
  assert len(texts) == 8 and len(set(texts)) == 8
  source = open_source("digits", "test")
  first = {}
  for example in (source[i] for i in range(len(source))):
    first.setdefault(example.texts[0], example.image)
  expected = model.probabilities([first[text] for text in texts], texts)
  for t, row in enumerate(rows):
    for i, cell in enumerate(row[1:]):
      assert cell == page.probability(expected[i, t])


def test_retrieval_finds_what_is_nearest(shown, model):
  source = open_source("digits", "test")
  examples = [source[i] for i in range(len(source))]
  texts = list(dict.fromkeys(t for e in examples for t in e.texts))
  probabilities = model.probabilities([examples[0].image], texts)[0]
  listed = [t for a, t in shown[0].all("li") if a.get("class") in ("", "right")]
  best = np.sort(probabilities)[::-1]
  for place in range(5):
    # In batches of another size the last bits are others, and so is a tie.
    (text,) = [t for t in range(len(texts)) if f" {texts[t]} " in listed[place]]
    np.testing.assert_allclose(probabilities[text], best[place], rtol=1e-5)
    mark = "✓ right" if texts[text] in examples[0].texts else "✗ wrong"
    told = page.probability(probabilities[text])
    assert listed[place] == f"{mark} {texts[text]} {told}"


def test_patches_of_a_row_are_those_of_the_model(shown, model):
  source = open_source("digits", "test")
  examples = [source[i] for i in np.linspace(0, 359, 6).astype(int)]
  images = [example.image for example in examples]
  grids = model.embed_patches(images, kind="text")
  maps = [text for _, text in shown[0].all("figcaption") if " % to " in text]
  assert len(maps) == 6
  for example, grid, told in zip(examples, grids, maps, strict=True):
    cosines = grid @ model.embed_texts(example.texts[:1])[0]
    chances = sigmoid(model.logit_scale * cosines + model.logit_bias)
    low, high = map(page.probability, (chances.min(), chances.max()))
    assert told == f"{example.texts[0]} {low} to {high}"
  side = grids.shape[1]
  (said,) = [t for _, t in shown[0].all("p") if " patches, compared" in t]
  assert said.startswith(f"{side} x {side} patches, ")
  assert "by the pool after the last block" in said
  colours = [a for a, _ in shown[0].all("img", alt="its patches as colours")]
  data = [base64.b64decode(a["src"].partition(",")[2]) for a in colours]
  expected = components(list(model.embed_patches(images)))
  for picture, cells in zip(data, expected, strict=True):
    pixels = np.asarray(Image.open(io.BytesIO(picture)), np.float32)
    assert pixels.shape == (128, 128, 3)
    cell = 128 // side
    middles = pixels[cell // 2 :: cell, cell // 2 :: cell][:side, :side]
    # WebP keeps brightness, and colours of neighbours mix.
    np.testing.assert_allclose(
      middles.mean(axis=-1), cells.mean(axis=-1), atol=20
    )


def test_masks_name_what_their_images_show(digits, tmp_path):
  for name in ("images", "masks"):
    (tmp_path / "scenes" / name).mkdir(parents=True)
  for number in range(4):
    scene = scenes_draw.train_example(number)
    for name, data in (("images", scene.image), ("masks", scene.mask)):
      (tmp_path / "scenes" / name / f"{number}.png").write_bytes(data)
  shutil.copytree(digits, tmp_path / "run")
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  classes = "configs/classes/scenes_shapes.json"
  spec = dense.segmentation(
    data="folder",
    path=str(tmp_path / "scenes"),
    split="all",
    classes_file=classes,
  )
  config["evals"] = {"masks": spec.to_dict()}
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  (run,) = read_runs([str(tmp_path / "run")])
  (group,) = samples.groups([run], 4)
  assert not group.notes and not group.cards, "nobody wrote captions"
  row = group.seen[0]
  assert "the pool after" in row.compared and len(row.images) == 4
  for number, one in enumerate(row.images):
    text = scenes_draw.train_example(number).caption
    assert one.maps
    for shape in (own.text for own in one.maps):
      assert shape in text, "what the caption says is what the mask shows"
  text = page.render([run], [group], None)
  assert len(Page(text).all("img")) == 4 * 2 + sum(
    len(one.maps) for one in row.images
  )


def test_evaluations_of_patches_have_no_answers(evaluated, tmp_path):
  """And what has some is compared none the less."""
  shutil.copytree(evaluated[0], tmp_path / "c")
  file = tmp_path / "c" / "results.json"
  content = json.loads(file.read_text())
  spec = {**content["evaluations"]["test"]["spec"], "kind": "segmentation"}
  masks = {**content["evaluations"]["test"], "spec": spec, "rows": "masks.csv"}
  (tmp_path / "c" / "masks.csv").write_text("key,row,miou,note\na,0,0.5,\n")
  content["evaluations"]["masks"] = masks
  file.write_text(json.dumps(content))
  shutil.copytree(tmp_path / "c", tmp_path / "d")
  runs = read_runs([str(tmp_path / "c"), str(tmp_path / "d")])
  (one,) = answers.compared(runs, False)
  assert one.name == "test" and not one.notes
  assert {wrong.name for wrong in answers.wrong(runs, False)} == {"test"}
  del content["evaluations"]["test"]
  file.write_text(json.dumps(content))
  results = read_runs([str(tmp_path / "c")])[0].results
  with pytest.raises(UserError, match="neither right nor wrong"):
    compare.compare(results, results)


def test_other_peoples_text_stays_text(digits, photos, tmp_path):
  folder = tmp_path / "<b>run</b>"
  shutil.copytree(digits, folder)
  config = json.loads((folder / "config.json").read_text())
  kept = {"kind": "retrieval", "data": "folder", "split": "all", "every": 1}
  shutil.copytree(photos, tmp_path / "photos")
  captions = tmp_path / "photos" / "captions.csv"
  # Whichever a model finds likeliest, it is malicious.
  evil = EVIL.replace('"', '""')
  captions.write_text(captions.read_text().replace("square", evil))
  config["evals"] = {"photos": {**kept, "path": str(tmp_path / "photos")}}
  (folder / "config.json").write_text(json.dumps(config))
  line = {"step": 2, "name": EVIL, "kind": "image", "reason": "</td>"}
  (folder / "skipped.jsonl").write_text(json.dumps(line) + "\n")
  file = tmp_path / "report.html"
  page.write_report([str(folder)], str(file))
  text = file.read_text()
  found = Page(text)
  assert "<script>alert" not in text and "<b>" not in text
  assert len(found.all("script")) == 1
  assert all(a["src"].startswith("data:image/") for a, _ in found.all("img"))
  assert any(a["alt"] == EVIL for a, _ in found.all("img"))
  assert any(EVIL in t for _, t in found.all("li"))
  assert found.rows("Skipped examples")[1][2] == EVIL
  assert "The five likeliest of 12 images." in [t for _, t in found.all("p")]


def test_captions_may_lie_in_a_file_of_their_own(photos, tmp_path):
  shutil.copytree(photos, tmp_path / "photos")
  (tmp_path / "photos" / "3.png").write_bytes(b"no image")
  sentences = [{"raw": "a square"}, {"raw": "a patch"}]
  images = [
    {"filename": f"{i}.png", "split": "test", "sentences": sentences}
    for i in range(5)
  ]
  (tmp_path / "split.json").write_text(json.dumps({"images": images}))
  spec = {
    "data": "folder",
    "path": str(tmp_path / "photos"),
    "split": "test",
    "captions_file": str(tmp_path / "split.json"),
    "max_captions": 1,
  }
  found = read_pool(spec, {})
  assert found.index == [0, 1, 2, 4]
  assert found.texts == ["a square"]
  assert found.skipped == ["number 3: is no image of a known format"]


def test_fields_of_a_table_are_those_of_training(photos, tmp_path):
  encoded = [(photos / f"{i}.png").read_bytes() for i in range(3)]
  columns = {"image": encoded, "alt": ["a", "b", "c"], "title": ["x", "y", "z"]}
  pq.write_table(pa.table(columns), tmp_path / "some.parquet")
  place = {"path": str(tmp_path / "some.parquet"), "split": "all"}
  spec = {"data": "parquet", **place}
  data = {"name": "parquet", **place, "text_keys": ["title"]}
  assert read_pool(spec, data).texts == ["x", "y", "z"]


def test_a_config_of_other_times_is_understood(digits, model, tmp_path):
  config = json.loads((digits / "config.json").read_text())
  new = ("templates_file", "canonicalize", "classes_file", "answers_file")
  for field in new:
    del config["evals"]["test"][field]
  (tmp_path / "config.json").write_text(json.dumps(config))
  (run,) = read_runs([str(tmp_path)])
  ((key, asked),) = wanted.wanted(run).items()
  source = wanted.open_data(key, run.config, asked.name)
  answers = pool.ask(model, pool.read_pool(source, 20), asked)
  assert len(answers.guesses.names) == 20


def test_runs_are_compared(digits, copy):
  other = copy("other", seed=7, batch_size=32)
  lines = [{"step": 3, "loss": 1.0}, {"step": 6, "evals/test/accuracy": 1.0}]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (other / "metrics.jsonl").write_text(text)
  found = render(digits, other)
  assert found.rows("Config fields that differ") == [
    ["field", "digits", "other"],
    ["batch_size", "16", "32"],
    ["seed", "0", "7"],
  ]
  table = found.rows("The last value of every metric")
  ((worse, better),) = [row[1:] for row in table if row[0] == "test/accuracy"]
  assert better == "100.0 % best" and not worse.endswith("% best")
  (loss,) = [
    json.loads(a["data-chart"])
    for a, text in found.all("figure")
    if text.startswith("loss")
  ]
  assert [curve["run"] for curve in loss["curves"]] == [0, 1]
  assert loss["x"] == "examples", "their batches are not of one size"
  assert loss["curves"][1]["points"][0][:2] == [96, 1.0]
  legend = [t for _, t in found.all("p", class_="legend")]
  assert legend and all(t == "digitsother" for t in legend)


def test_a_run_in_progress(copy):
  folder = copy("going", total_steps=60)
  found = render(folder)
  rows = dict(found.rows("What was trained, and how far")[1:])
  assert rows["Progress"] == "step 6 of 60 (10%): in progress or stopped"
  assert "No checkpoint yet" in note(found)


def test_a_run_that_has_just_begun(copy):
  folder = copy("begun")
  for file in ("metrics.jsonl", "starts.jsonl"):
    (folder / file).unlink()
  found = render(folder)
  assert "nothing has been logged" in note(found)
  assert "were not recorded" in note(found)
  assert not found.all("section", id="curves")
  assert found.rows("optimizer")


def test_damage_is_left_out_and_told(copy):
  folder = copy("damaged")
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9, "loss": NaN}\n[1]\n{"loss": 2}\n{"step": "x"}\n')
    file.write('{"step": 12, "loss": null, "grad_norm": "big"}\n\n{"step": 1')
  with (folder / "starts.jsonl").open("a") as file:
    file.write('{"start": 3, "devices": "many", "versions": 1}\n')
  (folder / "finetuning.json").write_text("{")
  found = render(folder, price=1.0)
  assert "metrics.jsonl: 4 lines are damaged" in note(found)
  assert "finetuning.json: is damaged" in note(found)
  crosses = [t for a, t in found.all("text") if a["class"].startswith("bad")]
  assert crosses == ["×"] * 3, "loss twice, grad_norm once"
  rows = dict(found.rows("What was trained, and how far")[1:])
  assert float(rows["Loss, last logged"]) > 0


def test_evaluations_beside_training_count(copy):
  folder = copy("watched")
  line = {"step": 5, "evals/more/recall@1": 0.5, "evals/more/recall@10": 0.75}
  (folder / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
  once = render(folder)  # The table has it; that is no curve.
  assert not any(t.startswith("more/recall") for _, t in once.all("figure"))
  lines = [{**line, "step": 4}, line]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "evaluations.jsonl").write_text(text)
  found = render(folder)
  rows = dict(found.rows("The last value of every metric")[1:])
  assert rows["more/recall@1"] == "50.0 % at step 5"
  assert rows["more/recall@10"] == "75.0 % at step 5"
  assert any(t.startswith("more/recall @1@10") for _, t in found.all("figure"))


def test_probabilities_of_a_softmax_are_told_to_mean_nothing(digits, copy):
  folder = copy("softmax", loss={"name": "ring_softmax"})
  shutil.copytree(digits / "checkpoints", folder / "checkpoints")
  runs = read_runs([str(folder)])
  samples.groups(runs, 1)
  (said,) = runs[0].notes
  assert "bias: there are no sigmoid probabilities that mean anything" in said


@pytest.fixture(scope="module")
def evaluated(digits, tmp_path_factory):
  """Two folders of results of the run; in the second one other answers."""
  folders = [tmp_path_factory.mktemp("results") / name for name in "ab"]
  status, _, said = programs.call(
    "tools/evaluate.py", f"--checkpoint={digits}", f"--output={folders[0]}"
  )
  assert status == 0, said
  shutil.copytree(*folders)
  file = epath.Path(folders[1]) / "test.csv"
  table = rows.read(file)
  for place in range(5, 15):
    right = not table["right"][place]
    table["right"][place], table["label_rank"][place] = right, 1 + (not right)
    table["predicted"][place] = table["label"][place] if right else EVIL
  rows.write(file, table)
  return folders


def test_evaluations_are_compared_with_their_images(evaluated, tmp_path):
  file = tmp_path / "report.html"
  page.write_report(list(map(str, evaluated)), str(file), examples=1)
  text = file.read_text()
  found = Page(text)
  assert "<script>alert" not in text
  table = rows.read(epath.Path(evaluated[0]) / "test.csv")
  wrong = [i for i, right in enumerate(table["right"]) if not right]
  (said,) = [t for _, t in found.all("p") if "from wrong to right" in t]
  better = len([i for i in range(5, 15) if i in wrong])
  assert said.startswith(
    f"{better} went from wrong to right, {10 - better} from right to wrong."
  )
  compared = found.rows("b against a, test")
  assert [row[0] for row in compared] == [
    *("metric", "accuracy", "top5", "per_class")
  ]
  change = 100 * (2 * better - 10) / 360
  assert compared[1][3].startswith(f"{change:+.1f} points ")
  evaluation = json.loads((evaluated[0] / "results.json").read_text())
  low, high = evaluation["evaluations"]["test"]["intervals"]["accuracy"]
  told = dict((row[0], row[1]) for row in found.rows(
    "The last value of every metric"))  # fmt: skip
  assert f"{100 * low:.1f} to {100 * high:.1f} %" in told["test/accuracy"]
  assert ["test", "360", "360"] in found.rows("How many images they are of")
  assert f"{len(wrong)} of 360 images are wrong" in text
  # Each of those that changed and of those that are wrong has its picture.
  keys = [t for _, t in found.all("p", class_="key")]
  assert len(keys) == 10 + 2 * 48
  pictures = {a["alt"] for a, _ in found.all("img")}
  assert set(keys) <= pictures


def test_results_in_a_runs_folder_are_its_own(evaluated, digits, copy):
  own, other = copy("own"), copy("other")
  for folder in (own, other):
    for name in ("results.json", "test.csv"):
      shutil.copy(evaluated[0] / name, folder / name)
  content = json.loads((own / "results.json").read_text())
  content["checkpoint"] = str(own / "checkpoints" / "6")
  (own / "results.json").write_text(json.dumps(content))
  first, second = read_runs([str(own), str(other)])
  assert first.results and not second.results
  assert f"is of another model, {digits}" in second.notes[-1]
  found = Page(page.render([first], [], None, answers.wrong([first], False)))
  assert [row[0] for row in found.rows("The last value of every metric")] == [
    *("metric", "test/accuracy", "test/per_class", "test/top5")
  ]
  assert found.all("section", id="wrong") and not found.all("img")


def test_what_cannot_be_compared_or_seen_leaves_a_note(evaluated, tmp_path):
  folder = tmp_path / "c"
  shutil.copytree(evaluated[0], folder)
  content = json.loads((folder / "results.json").read_text())
  spec = content["evaluations"]["test"]["spec"]
  spec |= {"data": "folder", "path": "/no/such/folder", "split": "all"}
  content["checkpoint"] = "/no/such/model"
  (folder / "results.json").write_text(json.dumps(content))
  runs = read_runs([str(folder), str(evaluated[0])])
  assert runs[0].notes == ["The model is gone: /no/such/model."]
  (said,) = answers.wrong(runs[:1], True)[0].notes
  assert "No pictures: config.evals.test.path='/no/such/folder'" in said
  (folder / "test.csv").unlink()
  (one,) = answers.compared(runs, True)
  assert "Not compared" in one.notes[0] and "test.csv" in one.notes[0]
  text = page.render(runs, [], None, answers.wrong(runs, False), [one])
  assert Page(text).all("section", id="compared")


def test_a_data_set_names_its_evaluation(model, photos):
  spec = {
    "kind": "classification", "data": "folder", "split": "all",
    "path": str(photos), "classes_file": None, "answers_file": None,
    "templates": ("{}",), "templates_file": None, "batch_size": 4,
    "canonicalize": False,
  }  # fmt: skip
  shown = read_pool(spec, {})
  asked = wanted.Wanted("shown", ml_collections.ConfigDict(spec))
  with pytest.raises(UserError) as error:
    pool.ask(model, shown, asked)
  assert str(error.value).startswith("config.evals.shown.data='folder'")


def test_fine_tuning_and_skipped_data_are_shown(copy):
  folder = copy("tuned", init={"path": "models/b16"})
  moved = {"relative_change": {"image/head": 0.125, "text/head": 0.5}}
  (folder / "finetuning.json").write_text(json.dumps(moved))
  with (folder / "metrics.jsonl").open("a") as file:
    line = {"step": 6, "skipped_examples": 3, "skipped/image": 3}
    file.write(json.dumps(line) + "\n")
  found = render(folder)
  (caption,) = [t for _, t in found.all("caption") if t.startswith("How far")]
  assert found.rows(caption)[1:] == [
    ["image/head", "12.50%"],
    ["text/head", "50.00%"],
  ]
  rows = dict(found.rows("How much was left out")[1:])
  assert rows["Examples replaced in training"] == rows["image"] == "3"
  overview = dict(found.rows("What was trained, and how far")[1:])
  assert overview["Started from"] == "models/b16"


def test_a_data_set_that_is_gone_leaves_a_note(digits, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(digits, folder)
  config = json.loads((folder / "config.json").read_text())
  config["evals"] = {
    "gone": {"data": "folder", "split": "all", "path": "/no/such/folder"}
  }
  (folder / "config.json").write_text(json.dumps(config))
  file = tmp_path / "report.html"
  page.write_report([str(folder)], str(file))
  found = Page(file.read_text())
  (text,) = [t for _, t in found.all("ul", class_="note")]
  assert "No pictures: this data set cannot be read" in text
  assert "no such folder" in text
  assert found.all("section", id="curves")


def test_a_damaged_checkpoint_leaves_a_note(digits, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(digits, folder)
  shutil.rmtree(folder / "checkpoints" / "6" / "params" / "ocdbt.process_0")
  file = tmp_path / "report.html"
  page.write_report([str(folder)], str(file))
  assert "Checkpoint 6 cannot be loaded" in note(Page(file.read_text()))


@pytest.mark.parametrize(
  "arguments,said",
  [
    ([], "0 runs: name the folders of 1 to 8"),
    (["nowhere"], "nowhere: no run lies here"),
    (["{run}", "{run}/"], "stands twice"),
    (["{run}", "--output={run}"], "cannot be written (is a folder)"),
    (["{run}", "--output=/no/such/folder/a.html"], "cannot be written"),
    (["{run}", "--price=-1"], "--price=-1.0: must be at least 0"),
    (["{run}", "--examples=-1"], "--examples=-1: must be at least 0"),
  ],
)
def test_a_mistake_is_one_line(arguments, said, digits):
  named = [a.format(run=digits) for a in arguments]
  flags = dict(a.removeprefix("--").split("=") for a in named if "--" in a)
  paths = [a for a in named if "--" not in a]
  with pytest.raises(UserError) as error:
    page.write_report(
      paths,
      flags.get("output", "report.html"),
      examples=int(flags.get("examples", 300)),
      price=float(flags["price"]) if "price" in flags else None,
    )
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_the_program_writes_the_page(digits, tmp_path):
  file = tmp_path / "report.html"
  status, printed, said = programs.start(
    "tools/report.py", digits, f"--output={file}", "--examples=0"
  )
  assert status == 0, said
  *numbers, last = printed.splitlines()
  assert last.split() == ["report", str(file)]
  # Of a machine that is slow to load libraries, nothing else is said.
  assert all(line.startswith("loading") for line in said.splitlines())
  assert "evals/test/accuracy" in [line.split()[0] for line in numbers]
  assert Page(file.read_text()).all("section", id="curves")


def test_a_long_curve_is_drawn_as_mean_and_band():
  values = np.random.default_rng(0).normal(size=5_000)
  points = list(enumerate(values.tolist()))
  points[3_456] = (3_456, None)
  for step in range(4_000, 4_025):
    points[step] = (step, None)
  parts = charts.stretches(points)
  assert len(parts) == 200
  np.testing.assert_allclose(parts[0].mean, values[:25].mean())
  assert (parts[1].low, parts[1].high) == (
    values[25:50].min(),
    values[25:50].max(),
  )
  assert [i for i, part in enumerate(parts) if not part.whole] == [138, 160]
  assert [i for i, part in enumerate(parts) if part.mean is None] == [160]
  short = charts.stretches(points[:200])
  assert [(part.x, part.mean) for part in short] == points[:200]
  chart = charts.Chart("loss", [charts.Curve(0, "", 0, points)])
  found = Page(chart.svg(["run"]))
  assert len(found.all("polyline")) == len(found.all("polygon")) == 2
  assert len(found.all("text", class_="bad run0")) == 2


@pytest.mark.parametrize(
  "low,high,expected",
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (0, 240, [0, 50, 100, 150, 200]),
    (-10.3, -9.7, [-10.2, -10.0, -9.8]),
    (3e-5, 1e-4, [4e-5, 6e-5, 8e-5, 1e-4]),
  ],
)
def test_ticks_are_round_numbers(low, high, expected):
  np.testing.assert_allclose(axes.ticks(low, high), expected)


def test_ticks_can_be_told_apart():
  assert axes.tick_texts([0, 0.5, 1]) == ["0", "0.5", "1"]
  texts = axes.tick_texts([-4.0002, -4.0001, -4.0])
  assert texts == ["-4.0002", "-4.0001", "-4"]
  assert axes.tick_texts([0, 500, 1_000]) == ["0", "500", "1k"]
  assert axes.tick_texts([1e6, 1.0005e6]) == ["1M", "1.0005M"]


def test_what_is_better_is_known_by_name():
  assert curves.direction("evals/a/image_to_text/recall@5") == 1
  assert curves.direction("evals/a/accuracy") == 1
  assert curves.direction("evals/a/ece") == -1
  assert curves.direction("evals/a/log_loss") == -1
  assert curves.direction("evals/a/scale") == 0
  assert resources.duration(3_725) == "1 h 02 min"
  assert resources.duration(200) == "3 min 20 s"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_it(shown, digits, copy, tmp_path):
  sync_api = pytest.importorskip("playwright.sync_api")
  file = tmp_path / "report.html"
  file.write_text(shown[1])
  two = tmp_path / "two.html"
  found = read_runs([str(digits), str(copy("other", seed=7))])
  two.write_text(page.render(found, [], None))
  flags = "no-sandbox disable-gpu disable-quic no-first-run disable-sync"
  flags += " disable-background-networking disable-component-update"
  complaints = []
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=BROWSER, args=[f"--{flag}" for flag in flags.split()]
    )
    context = browser.new_context(
      offline=True, viewport={"width": 390, "height": 800}
    )
    tab = context.new_page()
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda request: complaints.append(request.url[:99]))
    tab.goto(file.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    # Every picture was decoded.
    assert tab.evaluate(
      "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    tab.goto(two.as_uri())
    tab.locator("figure.chart svg[role=img]").nth(1).focus()
    tab.keyboard.press("ArrowRight")
    told = tab.locator("#readout").inner_text()
    assert "step 3" in told and "digits" in told and "other" in told
    tab.keyboard.press("Escape")
    assert not tab.locator("#readout").is_visible()
    colours = []
    for scheme in ("light", "dark"):
      tab.emulate_media(color_scheme=scheme)
      look = "getComputedStyle(document.body).backgroundColor"
      colours.append(tab.evaluate(look))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]
    browser.close()
  assert not complaints
