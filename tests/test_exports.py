"""Exports that others run: ONNX graphs, open_clip's config, the hub."""

import base64
import http.server
import json
import re
import sys
import threading

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from PIL import Image
import programs
import pytest
import runs

import big_siglip
from big_siglip import sharding
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained import saved
from big_siglip.weights import (
  card,
  export,
  open_clip_config,
  open_weights,
)
from big_siglip.weights.image_transforms import read_open_clip
from big_siglip.weights.preprocessing import find_preprocessing

TEXTS = ["A dog, running.", "two red circles", "Ünïcode & more", ""]


def _config(image=None, text=None, **data):
  text = {"vocab_size": 259, "length": 12, **(text or {})}
  model = model_cases.model_config(image or {}, text, embed_dim=32)
  rules = dict(tokenizer="bytes", lowercase=True, clean="none", pad_id=1)
  data = {**rules, "resize": "bicubic", **data}
  return ConfigDict({"model": model, "data": data})


def _embed(params, config, image, text):
  """Returns our embeddings, computed in float32."""
  model = config.model.copy_and_resolve_references()
  model.dtype, model.attention = "float32", "xla"
  return jax.jit(SigLIP(model).apply)({"params": params}, image, text)


def _run(folder, image, text):
  """Returns onnxruntime's embeddings of the same images and tokens."""
  onnxruntime = pytest.importorskip("onnxruntime")
  pixels = image.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
  feeds = {"pixel_values": pixels}, {"input_ids": text.astype(np.int64)}
  for tower, feed in zip(("image", "text"), feeds, strict=True):
    session = onnxruntime.InferenceSession(folder / f"{tower}.onnx")
    yield session.run([f"{tower}_embeds"], feed)[0]


@pytest.mark.parametrize(
  ("image", "text", "fields"),
  [
    (dict(depth=3), dict(depth=2), dict(scan=True)),
    (dict(depth=3), dict(depth=2), dict(scan=False, dtype="bfloat16")),
    (dict(image_size=20, drop_border=True), dict(head=False), {}),
    (dict(pooling="gap", head=True), dict(pooling="mean"), {}),
    (dict(pooling="cls", head=True), dict(pooling="cls"), {}),
    (dict(width=48, num_heads=3), dict(pooling="map"), dict(scan=False)),
  ],
)
def test_onnx_towers_give_our_embeddings(tmp_path, image, text, fields):
  onnx = pytest.importorskip("onnx")
  config = _config(image, text)
  config.model.update(fields)
  if "width" in image:
    config.model.embed_dim = 48
  params = model_cases.random_params(SigLIP(config.model))
  export.to_onnx(tmp_path / "onnx", params, config)
  pixels, tokens = model_cases.example_inputs(config.model, batch=3)
  wanted = _embed(params, config, pixels, tokens)
  for rows in (slice(0, 3), slice(1, 2)):
    got = list(_run(tmp_path / "onnx", pixels[rows], tokens[rows]))
    for ours, theirs in zip(wanted[:2], got, strict=True):
      np.testing.assert_allclose(theirs, ours[rows], atol=1e-5)
      cosine = (np.asarray(ours[rows]) * theirs).sum(axis=1)
      np.testing.assert_allclose(cosine, 1, atol=1e-5)
  for tower in ("image", "text"):
    file = str(tmp_path / "onnx" / f"{tower}.onnx")
    onnx.checker.check_model(file, full_check=True)
    made = onnx.load(file, load_external_data=False)
    said = {entry.key: entry.value for entry in made.metadata_props}
    assert said["opset"] == str(made.opset_import[0].version) == "20"
    assert said["ir_version"] == str(made.ir_version) == "9"
    assert said["onnx"] == onnx.__version__
    assert float(said["logit_scale"]) == pytest.approx(np.exp(2.3))
    assert float(said["logit_bias"]) == -5


@pytest.mark.parametrize("image", [dict(), dict(pooling="gap", head=True)])
def test_onnx_of_images_in_their_own_shape_gives_our_embeddings(
  tmp_path, image
):
  onnxruntime = pytest.importorskip("onnxruntime")
  onnx = pytest.importorskip("onnx")
  size = dict(size="mu/8", image_size=32, max_patches=20)
  config = _config({**size, **image})
  params = model_cases.random_params(SigLIP(config.model))
  export.to_onnx(tmp_path, params, config)
  grids = np.int32([(4, 4), (1, 7), (7, 1), (3, 5), (20, 1), (1, 1)])
  rng = np.random.default_rng(0)
  patches = rng.integers(0, 256, (len(grids), 20, 192), np.uint8)
  text = np.zeros((1, 12), np.int32)
  image = {"patches": patches, "grid": grids}
  wanted = _embed(params, config, image, text)[0]
  file = str(tmp_path / "image.onnx")
  onnx.checker.check_model(file, full_check=True)
  session = onnxruntime.InferenceSession(file)
  mask = np.arange(20) < grids.prod(axis=1)[:, None]
  feed = {
    "pixel_values": patches.astype(np.float32) / 127.5 - 1,
    "pixel_attention_mask": mask.astype(np.int64),
    "spatial_shapes": grids.astype(np.int64),
  }
  (found,) = session.run(["image_embeds"], feed)
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  feed["pixel_values"][~mask] = 1e3  # Padding is not looked at.
  (again,) = session.run(["image_embeds"], feed)
  np.testing.assert_array_equal(again, found)


def test_what_onnx_cannot_be_is_named_before_anything_is_written(
  tmp_path, monkeypatch
):
  config = _config(dict(pooling="none"))
  params = model_cases.random_params(SigLIP(config.model))
  with pytest.raises(UserError, match="image.pooling='none': there is no emb"):
    export.to_onnx(tmp_path / "onnx", params, config)
  config = _config()
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(UserError, match=r"onnx: pip install 'big_siglip\[onnx"):
    export.to_onnx(tmp_path / "onnx", params, config)
  assert not (tmp_path / "onnx").exists()


def _example():
  """Returns the code of docs/weights.md that uses onnxruntime."""
  text = (runs.ROOT / "docs" / "weights.md").read_text()
  (code,) = re.findall(r"```python\n(import[^`]*onnxruntime.*?)```", text, re.S)
  return code


def test_the_docs_example_gives_our_logits(tmp_path, monkeypatch):
  pytest.importorskip("onnxruntime")
  config = _config(dict(size="mu/56", image_size=224))
  params = model_cases.random_params(SigLIP(config.model))
  model_cases.save_model(tmp_path / "m", params, config.model, config.data)
  status, _, said = programs.call(
    "tools/export_weights.py",
    f"--checkpoint={tmp_path / 'm'}",
    "--format=onnx",
    f"--output={tmp_path / 'exported'}",
  )
  assert status == 0, said
  monkeypatch.chdir(tmp_path / "exported")
  noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
  Image.fromarray(noise).resize((640, 480)).save("photo.jpg")
  names: dict = {}
  exec(_example(), names)
  ours = big_siglip.load(str(tmp_path / "m"))
  logits = ours.logits(["photo.jpg"], ["a photo of a cat", "a photo of a dog"])
  # Its pixels are not rounded to whole grey levels.
  np.testing.assert_allclose(names["logits"], logits, atol=1e-3)


def test_open_clips_config_says_what_the_towers_are():
  config = _config(
    dict(size="So400m/16", image_size=384),
    dict(size="So400m", head=False),
    resize="big_vision",
    clean="canonical",
  )
  config.model.embed_dim = 1152
  made = open_clip_config.make(config, "org/name")
  assert made["model_cfg"]["embed_dim"] == 1152
  vision, text = (made["model_cfg"][f"{t}_cfg"] for t in ("vision", "text"))
  assert vision["timm_model_name"] == "vit_so400m_patch16_siglip_384"
  assert int(text["width"] * text["mlp_ratio"]) == 4304
  assert (text["layers"], text["heads"], text["proj_type"]) == (27, 16, "none")
  assert text["hf_tokenizer_name"] == "org/name"
  assert text["tokenizer_kwargs"] == {"clean": "canonicalize"}
  assert made["preprocess_cfg"]["interpolation"] == "bilinear"


@pytest.mark.parametrize(
  ("crop", "fill"),
  [("none", (0, 0, 0)), ("longest", (9, 9, 9)), ("center", (1, 2, 3))],
)
def test_open_clips_config_says_what_happens_to_images(
  tmp_path, caplog, crop, fill
):
  mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
  config = _config(
    dict(size="B/16", image_size=256, mean=mean, std=std), crop=crop, fill=fill
  )
  made = open_clip_config.make(config, "org/name")
  (tmp_path / "open_clip_config.json").write_text(json.dumps(made))
  assert read_open_clip(tmp_path) == {
    "image_size": 256,
    "resize": "bicubic",
    "crop": "shortest" if crop == "center" else crop,
    "mean": mean,
    "std": std,
    "fill": fill,
  }
  assert ("config.data.crop='center'" in caplog.text) == (crop == "center")


@pytest.mark.parametrize(
  "image", [dict(), dict(size="B/16", image_size=240), dict(size="L/14")]
)
def test_a_tower_without_timms_name_is_refused(tmp_path, image):
  config = _config(image)
  with pytest.raises(UserError, match="timm, of which open_clip") as error:
    export.to_open_clip(tmp_path / "out", None, config)
  assert "writes the weights alone" in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("head", [True, False])
def test_open_clip_loads_a_folder(tmp_path, head):
  open_clip = pytest.importorskip("open_clip")
  import torch

  text = dict(width=768, num_heads=12, mlp_dim=3000)
  config = _config(
    dict(size="B/32", image_size=256), dict(head=head, **text), pad_id=0
  )
  config.model.embed_dim = 768
  params = model_cases.random_params(SigLIP(config.model))
  params = jax.tree.map(lambda x: x * 0.2 if x.ndim > 1 else x, params)
  folder = tmp_path / "exported"
  export.to_open_clip(folder, params, config)
  name = f"local-dir:{folder}"
  theirs, _, preprocess = open_clip.create_model_and_transforms(name)
  ids = open_clip.get_tokenizer(name)(TEXTS)
  tokens = make_tokenizer("bytes", pad_id=0)(TEXTS, 12)
  np.testing.assert_array_equal(ids, tokens)
  pixels, _ = model_cases.example_inputs(config.model, batch=1)
  seen = preprocess(Image.fromarray(pixels[0]))[None]
  with torch.no_grad():
    got = (
      theirs.eval().encode_image(seen, normalize=True),
      theirs.encode_text(ids, normalize=True),
      theirs.logit_scale,
      theirs.logit_bias,
    )
  wanted = _embed(params, config, pixels, tokens)
  for ours, other in zip(wanted, got, strict=True):
    np.testing.assert_allclose(other.detach(), ours, atol=1e-5)
  weights = open_weights(str(folder))
  found = find_preprocessing(weights).data_fields()
  assert found.items() >= config.data.to_dict().items()
  again = saved.load_weights(
    weights, saved.published_config(weights), sharding.make_mesh()
  )
  flat, expected = runs.flatten(again), runs.flatten(params)
  assert flat.keys() >= {"image/patch_embedding/kernel"}
  np.testing.assert_array_equal(
    flat["image/patch_embedding/kernel"],
    expected["image/patch_embedding/kernel"],
  )


class _Hub(http.server.BaseHTTPRequestHandler):
  """The few addresses of the hub that an upload asks."""

  def log_message(self, *_):
    """Says nothing."""

  def _answer(self):
    hub = self.server
    body = self.rfile.read(int(self.headers["content-length"] or 0))
    hub.asked.append((self.command, self.path))
    code, found = hub.refused.get(self.path, 200), {}
    if self.path == "/api/repos/create":
      hub.created = json.loads(body)
      found = {"url": f"{hub.address}/org/name"}
    elif "/preupload/" in self.path:
      files = json.loads(body)["files"]
      found["files"] = [
        {**f, "uploadMode": "regular", "shouldIgnore": False} for f in files
      ]
    elif "/commit/" in self.path:
      lines = [json.loads(line) for line in body.splitlines()]
      hub.files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
      }
      where = f"{hub.address}/org/name/commit/{'0' * 40}"
      found = {"commitUrl": where, "commitOid": "0" * 40}
    elif "/resolve/" in self.path and not hub.has_readme:
      code = 404
    data = json.dumps(found).encode()
    self.send_response(code)
    if code == 404:
      self.send_header("X-Error-Code", "EntryNotFound")
    self.send_header("ETag", '"1"')
    self.send_header("X-Repo-Commit", "0" * 40)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  do_GET = do_POST = do_HEAD = _answer


@pytest.fixture
def hub(monkeypatch):
  constants = pytest.importorskip("huggingface_hub.constants")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
  server.address = f"http://127.0.0.1:{server.server_port}"
  server.asked, server.refused, server.has_readme = [], {}, False
  server.constants = constants
  # Read when the library is imported, which in this process it is already.
  monkeypatch.setattr(constants, "ENDPOINT", server.address)
  template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("HF_TOKEN", "hf_test")
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield server
  server.shutdown()
  server.server_close()
  thread.join()


@pytest.fixture
def run(tmp_path):
  """A folder as of a run of six steps, evaluated after the last two."""
  from configs import base

  config, folder = _config(), tmp_path / "run"
  params = model_cases.random_params(SigLIP(config.model))
  model_cases.save_model(folder, params, config.model, config.data)
  (folder / "checkpoints" / "0").rename(folder / "checkpoints" / "6")
  whole = json.loads(base.get_config().to_json_best_effort())
  whole.update(json.loads((folder / "config.json").read_text()), total_steps=6)
  whole["data"].update(
    name="folder", split="train", path="/home/someone/secret/PHOTOS/"
  )
  whole["init"]["path"] = "/home/someone/models/b16"
  (folder / "config.json").write_text(json.dumps(whole))
  lines = [{"step": n, "evals/test/accuracy": n / 8} for n in (4, 6, 8)]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  return folder


def _export(run, folder, *flags):
  return programs.call(
    "tools/export_weights.py",
    f"--checkpoint={run}",
    f"--output={folder}",
    *flags,
  )


def test_a_run_is_pushed_with_its_card(run, tmp_path, hub):
  status, printed, said = _export(run, tmp_path / "a", "--push=org/name")
  assert status == 0, said
  assert hub.address in printed
  assert hub.created["visibility"] == "private"
  assert hub.files.keys() == {f.name for f in (tmp_path / "a").iterdir()}
  for name, data in hub.files.items():
    assert data == (tmp_path / "a" / name).read_bytes()
  text = hub.files["README.md"].decode()
  assert text.startswith("---\n# license: choose one")
  assert "\nlibrary_name: transformers\n" in text
  assert "\npipeline_tag: zero-shot-image-classification\n" in text
  assert "- steps: 6\n" in text and "| test/accuracy | 0.75 | 6 |\n" in text
  # It may become public: nothing of where things lie on this machine.
  assert "- data: folder PHOTOS train\n" in text
  assert "- started from: b16\n" in text and "/home" not in text
  assert 'from_pretrained("org/name")' in text
  # A card that is there may have been edited.
  hub.has_readme = True
  status, _, said = _export(
    run, tmp_path / "b", "--push=org/name", "--public", "--format=onnx"
  )
  assert status == 0, said
  assert hub.created["visibility"] == "public"
  assert "README.md" not in hub.files and "image.onnx" in hub.files


def test_what_stops_a_push_is_one_line(run, tmp_path, hub, monkeypatch):
  out = tmp_path / "out"

  def said(*flags):
    status, _, message = _export(run, out, *flags)
    assert status == 2
    (line,) = programs.without_progress(message).splitlines()
    return line

  assert "--push=name: must be ORG/NAME" in said("--push=name")
  assert "--push uploads a folder" in said(
    "--push=a/b", "--format=open_clip", f"--output={out}.safetensors"
  )
  assert "--public says who sees what --push" in said("--public")
  hub.refused["/api/repos/create"] = 403
  assert "--push=org/name: " in said("--push=org/name")
  assert not out.exists(), "nothing is exported that cannot be pushed"
  hub.refused = {"/api/models/org/name/commit/main": 403}
  line = said("--push=org/name")
  assert f"{out} is whole: hf upload org/name {out}" in line
  hub.shutdown()
  hub.server_close()
  out = tmp_path / "other"
  assert "--push=org/name: Connect" in said("--push=org/name")
  monkeypatch.delenv("HF_TOKEN")
  monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
  assert "no login: run 'hf auth login'" in said("--push=org/name")
  assert not out.exists()


@pytest.mark.parametrize(
  ("style", "name", "said"),
  [
    ("open_clip", None, 'create_model_and_transforms("local-dir:mine")'),
    ("open_clip", "org/name", 'get_tokenizer("hf-hub:org/name")'),
    ("onnx", None, 'folder = "mine"'),
  ],
)
def test_a_card_says_how_to_load(tmp_path, style, name, said):
  folder = tmp_path / "mine"
  folder.mkdir()
  card.save(folder, style, _config(), {}, name)
  text = (folder / "README.md").read_text()
  assert said in text
  assert "Its weights were imported; no run is known." in text
  code = re.findall(r"```python\n(.*?)```", text, re.S)
  compile(code[0], "README.md", "exec")
