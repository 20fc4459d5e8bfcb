"""Evaluations of a decoder: what it writes, counted by hand and by others."""

import json
import shutil

import jax
import numpy as np
from PIL import Image
import programs
import pytest
import runs

import big_siglip
from big_siglip import build
from big_siglip.checkpoint import save_params
from big_siglip.data import sources
from big_siglip.errors import UserError
from big_siglip.evaluation import compare, reading, samples
from big_siglip.evaluators import caption_metrics, Result
from big_siglip.evaluators.caption_tokens import tokenize
from big_siglip.evaluators.scribe import Search
from big_siglip.objectives import captioning
from big_siglip.report import maps, page
from big_siglip.report import samples as report_samples
from big_siglip.report.opening import read_runs
from big_siglip.run import workdir
from configs import base, terms, written

COUNT, LENGTH = 5, 16
EDGES = (2, 1, 8, 9)  # Of ten.
PHRASES = ("a dog", "a cat", "red", "b")


def _config(**section):
  config = runs.config(model__text__length=LENGTH).unlock()
  config.evals, config.batch_size = {}, 8
  config.data.fields = ("boxes", "box_texts")
  own = dict(aref=1.0, gcap=1.0, boxes="tokens", bins=11) | section
  config.terms = {"words": terms.captioning(**own)}
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a run whose model says random things."""
  config = _config()
  program = build.program(config, build.mesh(config, jax.devices()[:1]))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(0.3 * rng.normal(size=x.shape)),
    program.abstract_state.params,
  )
  # It writes letters, and other ones of other images.
  bias = params["words"]["logits"]["bias"]
  bias[[i for i in range(259) if not 97 + 3 <= i <= 122 + 3]] -= 20
  params["words"]["position_embedding"] *= 10
  for name in ("out", "value", "query"):
    kernel = params["words"]["block_0"]["cross_attention"][name]["kernel"]
    kernel *= 6
  # What it writes last of a box are its edges, of whatever.
  decoder = captioning.make_decoder(config.terms.words, config.model)
  targets, context = np.zeros((1, 1, LENGTH), np.int32), np.zeros((1, 4, 32))
  hidden = decoder.apply({"params": params["words"]}, targets, context).hidden
  own = np.array(hidden[0, 0, -4:])
  own = 40 * own / np.square(own).sum(axis=1, keepdims=True)
  params["words"]["logits"]["kernel"][:, 259 + np.array(EDGES)] += own.T
  folder = tmp_path_factory.mktemp("words") / "run"
  checkpoint = folder / "checkpoints" / "3"
  checkpoint.mkdir(parents=True)
  save_params(checkpoint, params)
  text = json.dumps(workdir.as_json(config))
  (folder / "config.json").write_text(text)
  return folder


@pytest.fixture(scope="module")
def said(run):
  """(the model, images, its captions, its boxes of all phrases)."""
  model = big_siglip.load(run)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (COUNT, 1, 20, 3)) + np.zeros((1, 20, 1, 1))
  images = list(images.astype(np.uint8))
  return (
    model,
    images,
    model.caption(images),
    model.find_boxes(images, PHRASES),
  )


def _evaluate(folder, run, **section):
  evals = base.ConfigDict({"own": section.pop("kind")(**section)})
  evals.own.path, evals.own.split = str(folder), "all"
  evals.own.batch_size = 2
  return big_siglip.evaluate(run, evals=evals)["own"]


def _write(folder, images, rows):
  for i, image in enumerate(images):
    Image.fromarray(image).save(folder / f"{i}.png")
  lines = [
    json.dumps({"image": f"{i}.png", **row}) for i, row in enumerate(rows)
  ]
  (folder / "captions.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def naflex(run):
  """The same run, as it keeps the shape of images of up to six patches."""
  folder = run.parent / "naflex"
  shutil.copytree(run, folder)
  config = json.loads((folder / "config.json").read_text())
  config["model"]["image"]["max_patches"] = 6
  (folder / "config.json").write_text(json.dumps(config))
  return big_siglip.load(folder)


def test_squares_are_told_by_a_model_that_keeps_shapes_too(said, naflex):
  model, images, captions, found = said
  grids = {tuple(naflex.prepare_image(image)["grid"]) for image in images}
  assert grids == {(2, 2)}  # And two places of padding.
  assert naflex.caption(images, batch_size=4) == captions
  assert naflex.find_boxes(images, PHRASES) == found
  np.testing.assert_allclose(
    naflex.log_likelihoods(images, PHRASES),
    model.log_likelihoods(images, PHRASES),
    atol=1e-4,
    rtol=1e-5,
  )
  assert len(naflex.caption(images, beams=2)) == len(images)


def test_padding_changes_nothing_of_what_is_written(said, naflex):
  rng = np.random.default_rng(1)
  shapes = ((20, 20), (16, 60), (64, 9), (33, 30))
  images = [rng.integers(0, 256, (*x, 3), np.uint8) for x in shapes]
  clean = [naflex.prepare_image(image) for image in images]
  assert min(image["grid"].prod() for image in clean) < 6
  dirty = []
  for image in clean:
    patches = image["patches"].copy()
    patches[image["grid"].prod() :] = 255
    dirty.append({**image, "patches": patches})
  writer, found = naflex.captioner, []
  for rows in (clean, dirty):
    ((context, _),) = writer.batches(rows, len(rows))
    written = writer.write(context, writer.start("caption"), Search(2))
    found.append((written, writer.score(context, PHRASES)))
  assert found[0][0] == found[1][0]
  np.testing.assert_array_equal(found[0][1], found[1][1])
  assert len({sentence.text for sentence in found[0][0]}) > 1
  # What is no patch would change it, were it seen.
  seen = context._replace(mask=None)
  assert (writer.score(seen, PHRASES) != found[1][1]).any()


def test_captions_are_scored_as_they_are_written(said, run, tmp_path):
  """Two of five images have the very caption that the model writes."""
  model, images, own, _ = said
  captions = [["a dog", text, "x"] for text in own[:2]]
  captions += [["a dog runs", "the dog"], ["b"], ["two red, cats"]]
  _write(tmp_path, images, [{"captions": texts} for texts in captions])
  found = _evaluate(tmp_path, run, kind=written.caption)
  words = [tokenize(text) for text in own]
  assert all(words) and len(set(own)) > 1
  true = [[tokenize(text) for text in texts] for texts in captions]
  metrics = found.metrics
  assert metrics["exact_match"] == 2 / 5 and metrics["skipped"] == 0
  cider = caption_metrics.cider(words, true)
  np.testing.assert_allclose(metrics["cider"], cider.mean(), rtol=1e-12)
  counts = caption_metrics.bleu_counts(words, true).sum(axis=0)
  np.testing.assert_allclose(metrics["bleu4"], caption_metrics.bleu(counts))
  np.testing.assert_allclose(
    metrics["mean_length"], np.mean([len(text) for text in words])
  )
  firsts = [texts[0] for texts in captions]
  likely = model.log_likelihoods(images, firsts).diagonal().sum()
  tokens = sum(len(text) + 1 for text in firsts)  # Bytes, and the end.
  np.testing.assert_allclose(
    metrics["perplexity"], np.exp(-likely / tokens), rtol=1e-5
  )
  others = [*true[1:], *true[:1]]
  cider = caption_metrics.cider(words, others).mean()
  np.testing.assert_allclose(metrics["shuffled_cider"], cider, rtol=1e-12)
  same = own[0] == own[1]  # The second image has the caption of the first.
  assert metrics["shuffled_exact"] == same / 5
  rows = found.rows()
  assert rows["written"] == own and rows["row"] == list(range(COUNT))
  assert rows["exact"] == [True, True, False, False, False]
  assert rows["captions"][1] == " | ".join(captions[1])
  low, high = found.intervals["cider"]
  assert low <= metrics["cider"] <= high
  limited = _evaluate(tmp_path, run, kind=written.caption, max_captions=1)
  assert limited.metrics["exact_match"] == 0
  assert limited.metrics["true_length"] != metrics["true_length"]


def test_boxes_and_texts_are_scored_as_they_are_written(said, run, tmp_path):
  """Regions that the model finds, one that it misses, and an image without."""
  model, images, _, boxes = said
  there = next(i for i, row in enumerate(boxes) if all(row))
  nowhere = next(i for i, row in enumerate(boxes) if not any(row))
  a, b, c, d = boxes[there]
  wrong = [0.0, 0.0, 0.4, 0.4]
  missed = caption_metrics.overlap(np.array(c), np.array(wrong))
  assert 0 < missed < 0.5
  regions = [
    # (image, text, box, IoU of the answer)
    (there, PHRASES[0], a, 1.0),
    (there, PHRASES[1], b, 1.0),
    (there, PHRASES[2], wrong, float(missed)),
    (there, PHRASES[3], d, 1.0),  # Of two boxes of a text the nearest counts.
    (there, PHRASES[3], wrong, 1.0),
    (nowhere, PHRASES[0], wrong, 0.0),
  ]
  rows = [{"caption": "a", "boxes": [], "box_texts": []} for _ in images]
  for i, text, box, _ in regions:
    rows[i]["boxes"].append(box)
    rows[i]["box_texts"].append(text)
  expected = [iou for *_, iou in sorted(regions, key=lambda r: r[0])]
  _write(tmp_path, images, rows)
  found = _evaluate(tmp_path, run, kind=written.grounding)
  metrics = found.metrics
  assert metrics["regions"] == len(expected) and metrics["skipped"] == 0
  assert found.images == 2 and metrics["no_box"] == 1 / 6
  np.testing.assert_allclose(metrics["accuracy@0.5"], 4 / 6)
  np.testing.assert_allclose(metrics["mean_iou"], np.mean(expected), atol=1e-6)
  curve = found.details["accuracy_by_iou"]
  assert curve["share"][9] == metrics["accuracy@0.5"]
  assert curve["share"][-1] == 4 / 6 and curve["share"][0] == 5 / 6
  table = found.rows()
  np.testing.assert_allclose(table["iou"], expected, atol=1e-6)
  texts = []
  for row, box in zip(table["row"], table["box"], strict=True):
    box = tuple(map(float, box.split()))
    ((text,),) = model.caption_boxes([images[row]], [box])
    texts.append(text)
  assert table["written"] == texts
  pairs = zip(texts, table["text"], strict=True)
  right = [tokenize(one) == tokenize(two) for one, two in pairs]
  assert table["exact"] == right
  assert metrics["text_exact_match"] == np.mean(right)
  for name in ("box_perplexity", "text_perplexity"):
    assert 1 < metrics[name] < np.inf
  only = _evaluate(tmp_path, run, kind=written.grounding, max_boxes=1)
  assert only.metrics["regions"] == 2


def test_samples_show_captions_and_boxes(said, tmp_path):
  """Green where right: what is compared here is where the frames lie."""
  _, images, own, _ = said
  _write(tmp_path, images, [{"caption": text} for text in own])
  source = sources.open_source("folder", "all", str(tmp_path))
  box, key = "0.2500 0.2500 0.7500 0.7500", [f"{i}.png" for i in range(2)]
  answers = {"key": key, "row": [0, 1], "text": ["a", "b"]}
  answers |= {"box": [box, box], "found": [box, None], "iou": [1.0, 0.0]}
  frames = [
    samples.sheet(
      lambda: source, Result({}, {"whole": whole}, rows=lambda: answers)
    )
    for whole in (True, False)
  ]
  changed = (frames[0] != frames[1]).any(axis=-1)
  rows, columns = np.nonzero(changed)
  tall, wide = np.ptp(rows), np.ptp(columns[columns < changed.shape[1] // 4])
  assert tall == pytest.approx(wide, rel=0.05) and tall > 50
  captions = {"key": key, "row": [0, 1], "written": ["a", "b"]}
  captions |= {"captions": ["a", "c"], "exact": [True, False]}
  drawn = Result({}, {}, rows=lambda: captions)
  assert samples.sheet(lambda: source, drawn).std() > 0
  nothing = Result({}, {}, rows=lambda: {"key": key, "miou": [0.5, 0.5]})
  assert samples.sheet(lambda: source, nothing) is None


def _shown(run, folder, data, **changes):
  """Returns the groups and the text of a report of the run on a folder."""
  shutil.copytree(run, folder)
  file = folder / "config.json"
  config = json.loads(file.read_text())
  config["data"] |= changes
  own = dict(data="folder", path=str(data), split="all")
  sections = {
    "pairs": base.retrieval(**own),
    "words": written.caption(text_keys=("phrasings",), **own),
    "boxes": written.grounding(**own),
  }
  config["evals"] = {k: v.to_dict() for k, v in sections.items()}
  file.write_text(json.dumps(config))
  figures = {"words/exact_match": 0.25, "boxes/accuracy@0.5": 0.5}
  line = {f"evals/{name}": value for name, value in figures.items()}
  (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, **line}))
  found = read_runs([str(folder)])
  groups = report_samples.groups(found, COUNT)
  return groups, page.render(found, groups, None)


def test_a_report_shows_what_is_written(said, run, tmp_path):
  """One group, whatever texts an evaluation reads; boxes where they lie."""
  model, images, own, boxes = said
  there = next(i for i, row in enumerate(boxes) if all(row))
  nowhere = next(i for i, row in enumerate(boxes) if not any(row))
  wrong = [0.0, 0.0, 0.25, 0.5]
  rows = [
    {"caption": "a", "phrasings": ["a", own[i]], "boxes": [], "box_texts": []}
    for i in range(COUNT)
  ]
  rows[3]["phrasings"] = ["a", "<b>"]
  for i in (there, nowhere):
    rows[i]["boxes"] = [boxes[there][0], wrong]
    rows[i]["box_texts"] = list(PHRASES[:2])
  _write(tmp_path, images, rows)
  (group,), text = _shown(run, tmp_path / "run", tmp_path)
  assert not group.notes and not group.seen
  row = group.told[0]
  assert [one.written for one in row.images] == own
  right = [own[3] in ("a", "<b>") if i == 3 else True for i in range(COUNT)]
  assert [one.right for one in row.images] == right and row.right == 4
  assert "4 of 5 captions are right; 2 x 2 patches" in text
  assert "it is</small> a; &lt;b&gt;</p>" in text
  first, second = row.images[there].phrases
  assert first.iou == pytest.approx(1) and first.right and second.box
  missed = caption_metrics.overlap(np.array(second.box), np.array(wrong))
  assert second.iou == pytest.approx(float(missed)) and second.iou < 0.5
  assert not second.right
  assert [one.box for one in row.images[nowhere].phrases] == [None, None]
  for i in (there, nowhere):
    assert [m.text for m in row.images[i].seen.maps] == list(PHRASES[:2])
  y1, x1, y2, x2 = (100 * edge for edge in boxes[there][1])
  frame = f'x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}"'
  assert f'<rect class="box1" {frame} height="{y2 - y1:.2f}"/>' in text
  for said_first in ("word for word</dt><dd>25.0 %", "0.5 on</dt><dd>50.0 %"):
    assert said_first in text
  assert text.count('class="true" x="0.00" y="0.00" width="50.00"') == 2
  alike = [one.framed == one.seen.picture for one in row.images]
  assert all(alike)


def test_boxes_lie_in_what_the_model_sees(said, run, tmp_path):
  _, images, _, _ = said
  tall = [np.concatenate([x, 255 - x]) for x in images[:2]]
  row = {"caption": "a", "phrasings": ["b"], "box_texts": ["a dog"]}
  boxes = [[0.25, 0.0, 0.75, 1.0]]
  _write(tmp_path, tall, [{**row, "boxes": boxes}] * 2)
  (group,), _ = _shown(run, tmp_path / "run", tmp_path, crop="center")
  for one in group.told[0].images:
    (phrase,) = one.phrases
    assert phrase.true == (0, 0, 1, 1), "the middle half is all that is seen"
    assert one.framed.alt == "what the model sees of it"


def test_a_layer_that_no_tower_has_is_told(run):
  found = read_runs([str(run)])
  with pytest.raises(UserError, match="^--map_layer=-9: must be 1"):
    report_samples.groups(found, 1, maps.Choice(None, -9))


def test_a_run_evaluates_its_own_decoder(run, tmp_path):
  """While it trains, by the parameters of the step, blocks stacked or not."""
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (COUNT, 20, 20, 3), np.uint8)
  rows = [
    {"caption": "a", "boxes": [[0, 0, 1, 1]], "box_texts": ["b"]}
    for _ in images
  ]
  _write(tmp_path, images, rows)
  config = _config()
  config.evals = {
    name: kind(path=str(tmp_path), split="all", batch_size=1)
    for name, kind in (("words", written.caption), ("boxes", written.grounding))
  }
  mesh = build.mesh(config)
  state = build.program(config, mesh).init()
  found = build.evaluators(config, mesh)
  assert found["words"](state.weights).metrics["skipped"] == 0
  assert found["boxes"](state.weights).metrics["regions"] == COUNT


def test_mistakes_are_one_line(run, tmp_path):
  _write(tmp_path, np.zeros((2, 8, 8, 3), np.uint8), [{"caption": "a"}] * 2)
  with pytest.raises(UserError, match="own: .*missing column boxes, box_te"):
    _evaluate(tmp_path, run, kind=written.grounding)
  _write(
    tmp_path,
    np.zeros((2, 8, 8, 3), np.uint8),
    [{"caption": "a", "boxes": [[0, 0, 9, 9]], "box_texts": ["b"]}] * 2,
  )
  with pytest.raises(UserError, match="own.data='folder': no image has a box"):
    _evaluate(tmp_path, run, kind=written.grounding)
  config = runs.config()
  config.evals = {"own": written.caption(data="scenes")}
  with pytest.raises(UserError) as caught:
    build.evaluators(config, build.mesh(config))
  assert str(caught.value) == (
    "config.evals.own.kind='caption': needs a decoder that was trained for"
    " caption: a section of config.terms, of kind='captioning'"
  )
  config = _config(aref=0.0, gcap=0.0)
  config.evals = {"own": written.grounding(data="scenes")}
  with pytest.raises(UserError, match="was trained for aref or gcap"):
    build.evaluators(config, build.mesh(config))


def test_the_command_writes_rows_and_a_picture(said, run, tmp_path):
  _, images, own, _ = said
  (tmp_path / "data").mkdir()
  rows = [{"caption": text or "a"} for text in own]
  _write(tmp_path / "data", images, rows)
  evals = tmp_path / "evals.py"
  evals.write_text(
    "from configs import base, written\n"
    "from ml_collections import ConfigDict\n\n\n"
    "def get_config():\n"
    f"  place = dict(path={str(tmp_path / 'data')!r}, split='all')\n"
    "  return ConfigDict({'own': written.caption(**place),\n"
    "                     'found': base.retrieval(**place)})\n"
  )
  status, printed, error = programs.call(
    "tools/evaluate.py",
    *(f"--checkpoint={run}", f"--evals={evals}", f"--output={tmp_path / 'o'}"),
  )
  assert status == 0, error
  assert "exact_match" in printed and "cider" in printed
  assert (tmp_path / "o" / "own.csv").read_text().count("\n") == COUNT + 1
  content = json.loads((tmp_path / "o" / "results.json").read_text())
  metrics = content["evaluations"]["own"]["metrics"]
  assert metrics["exact_match"] == 1
  # Rows of texts say of nothing that it is right: others are compared.
  done = reading.read(str(tmp_path / "o"))
  assert [one.name for one in compare.compare(done, done)] == ["found"]
