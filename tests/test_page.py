"""The page as a browser or a stranger asks for it, over real connections."""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import pickle
import re
import signal
import socket
import struct
import sys
import time
import types
import zipfile
import zlib

import numpy as np
import pages
from pages import ask, classify, form, serve_here
from PIL import Image
import programs
import pytest

from big_siglip.data import images as image_data
from big_siglip.errors import UserError
from big_siglip.page.gallery import Gallery
from big_siglip.page.limits import Limits

LABELS = ["a red square", "something blue", "ein grünes Blatt", "👋 <b>"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return pages.make_place(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def port(place):
  """A server of all tests: what one of them does must not harm the next."""
  flags = [f"--checkpoint={place.checkpoint}", f"--embeddings={place.vectors}"]
  with pages.serve(*flags) as (port, process, errors):
    yield port
    assert_scores_are_right(port, place)
    assert process.poll() is None
  assert process.returncode == 0
  # No trace of ours; this one is about bytes that are no request.
  expected = {"WARNING:  Invalid HTTP request received.\n"}
  assert set(pages.apart_from_progress(errors)) <= expected, "".join(errors)


def assert_scores_are_right(port, place):
  files = [place.photos / "red.png", place.photos / "blue.png"]
  status, answer = classify(port, files, LABELS)
  assert status == 200, answer
  assert answer["labels"] == LABELS
  assert [image["name"] for image in answer["images"]] == [
    "red.png",
    "blue.png",
  ]
  logits = place.model.logits(files, LABELS).astype(np.float64)
  shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  for image, row, share in zip(answer["images"], logits, shares, strict=True):
    scores = image["scores"]
    assert [score["label"] for score in scores] == LABELS
    found = [score["probability"] for score in scores]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-row)), rtol=1e-4)
    found = [score["softmax"] for score in scores]
    np.testing.assert_allclose(found, share, rtol=1e-4)


def test_scores_are_those_of_the_model(port, place):
  assert_scores_are_right(port, place)


def test_a_bad_image_is_named_and_the_others_are_scored(port, place):
  good = place.photos / "red.png"
  images = [good, ("bad.jpg", b"no image"), place.photos / "bomb.png", good]
  status, answer = classify(port, images, LABELS[:1])
  assert status == 200
  first, bad, bomb, last = answer["images"]
  assert "is no image that can be read (JPEG, PNG, " in bad["error"]
  assert bomb["error"] == "has more than 50,000,000 pixels"
  assert "scores" not in bad and "scores" not in bomb
  assert first["scores"] == last["scores"]


def test_each_tricky_image_is_scored_or_refused_by_name(
  port, place, shared_data
):
  files = [f for f in (shared_data / "tricky").iterdir() if f.suffix != ".csv"]
  assert len(files) > 60
  for start in range(0, len(files), 40):
    some = files[start : start + 40]
    status, answer = classify(port, some, LABELS)
    assert status == 200
    for file, image in zip(some, answer["images"], strict=True):
      assert image["name"] == file.name
      try:
        image_data.decode(file.read_bytes())
      except image_data.BadImage:
        assert image["error"]
        continue
      found = [score["probability"] for score in image["scores"]]
      expected = place.model.probabilities([file], LABELS)[0]
      np.testing.assert_allclose(found, expected, rtol=1e-4)


RED = io.BytesIO()
Image.new("RGB", (20, 20), "red").save(RED, "PNG")
RED = RED.getvalue()
GOOD = ("red.png", RED)


def _zip():
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("bomb", bytes(10**6))
  return stream.getvalue()


def _says_it_is_huge(kind):
  """An image of 20 x 20 pixels whose header names 65,000 x 65,000."""
  stream = io.BytesIO()
  Image.new("RGB", (20, 20), "red").save(stream, kind)
  data = stream.getvalue()
  if kind == "GIF":
    return data[:6] + struct.pack("<HH", 65_000, 65_000) + data[10:]
  header = b"IHDR" + struct.pack(">II", 65_000, 65_000) + data[24:29]
  checksum = struct.pack(">I", zlib.crc32(header))
  return data[:12] + header + checksum + data[33:]


NO_IMAGES = {
  "nothing": (b"", "is empty"),
  "text": (b"a cat", "is no image that can be read"),
  "pickle": (pickle.dumps({"a": 1}), "is no image that can be read"),
  "zip": (_zip(), "is no image that can be read"),
  "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image that"),
  # Ghostscript would run it.
  "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
  "cut off": (RED[:60], "is damaged, or cut off"),
  "PNG header": (_says_it_is_huge("PNG"), "has more than 50,000,000 pixels"),
  "GIF header": (_says_it_is_huge("GIF"), "has more than 50,000,000 pixels"),
  "a bomb": (pages.bomb(), "has more than 50,000,000 pixels"),
  "60 megapixels": (
    pages.bomb(side=8_000),
    "has 8,000 x 8,000 pixels; at most 50,000,000 in all",
  ),
  "16 MB": (bytes(16 * 2**20 + 1), "is larger than 16 MB"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_no_image_is_one_clear_line(port, kind):
  content, said = NO_IMAGES[kind]
  status, answer = classify(port, [("x.png", content)], LABELS)
  assert status == (413 if kind == "16 MB" else 400)
  assert answer["error"].startswith("x.png: ")
  assert said in answer["error"]
  assert len(answer["error"].splitlines()) == 1


MANY = "\n".join(f"label {i}" for i in range(100_000))
FORMS = {
  "no image": (form([], ["a"]), 400, "images: choose at least one"),
  "no file chosen": (form([("", b"")], ["a"]), 400, "images: choose at least"),
  "no label": (form([GOOD]), 400, "labels: give at least one"),
  "an empty label": (form([GOOD], [""]), 400, "labels: give at least one"),
  "blanks": (form([GOOD], [" \n\t\r\n "]), 400, "labels: give at least one"),
  "twice": (form([GOOD], ["a\nb\na"]), 400, "labels: 'a' stands there twice"),
  "long": (form([GOOD], ["x" * 301]), 400, "longer than 300 characters"),
  "1,002": (form([GOOD], ["a"] * 1_002), 413, "labels: at most 1,000"),
  "100,000": (form([GOOD], [MANY]), 413, "labels: "),
  "100,000 fields": (form([GOOD], MANY.split()), 413, "labels: at most 1,000"),
  "1,001 lines": (
    form([GOOD], ["\n".join(map(str, range(1_001)))]),
    413,
    "labels: 1,001 are too many; at most 1,000",
  ),
  "no JSON": (form([GOOD], ['["a",']), 400, "labels: cannot be read as JSON"),
  "JSON of numbers": (form([GOOD], ["[1]"]), 400, "labels: 1 must be a name"),
  "deep JSON": (form([GOOD], ["[" * 9_000]), 400, "labels: is nested too"),
  "a label's file": (form([GOOD], [GOOD]), 400, "labels: must be text"),
  "an image's text": (form(["red"], ["a"]), 400, "images: must be files"),
  "65 images": (form([GOOD] * 65, ["a"]), 413, "images: at most 64 at once"),
  "no form": ((b"{}", {"Content-Type": "application/json"}), 400, "must be a"),
  "no type": ((b"{}", {}), 400, "must be a multipart/form-data form"),
  "no boundary": (
    (b"{}", {"Content-Type": "multipart/form-data"}),
    400,
    "oundary",
  ),
  "no parts": (
    (b"--x", {"Content-Type": "multipart/form-data; boundary=y"}),
    400,
    "",
  ),
  "64 MB": (
    form([("a.png", bytes(2**23))] * 8, ["a"]),
    413,
    "the upload is larger than 64 MB",
  ),
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_bad_form_is_one_clear_line(port, kind):
  (body, headers), status, said = FORMS[kind]
  found, _, answer = ask(port, "POST", "/api/classify", body, headers)
  assert (found, list(answer)) == (status, ["error"])
  assert said in answer["error"]
  assert answer["error"] and len(answer["error"].splitlines()) == 1


def test_an_upload_of_no_stated_length_is_counted(port):
  body, headers = form([("a.png", bytes(2**23))] * 9, ["a"])
  pieces = (body[i : i + 2**20] for i in range(0, len(body), 2**20))
  status, _, answer = ask(port, "POST", "/api/classify", pieces, headers)
  assert status == 413
  assert answer == {"error": "the upload is larger than 64 MB"}


def test_names_of_files_are_only_shown(port):
  for name in ("../../etc/passwd", "<script>", "C:\\x.png", "n" * 999, "\t"):
    status, answer = classify(port, [(name, RED)], ["a"])
    assert status == 200
    shown = answer["images"][0]["name"]
    assert shown.isprintable() and len(shown) <= 200


@pytest.mark.parametrize(
  "text",
  [
    '["a red square", "something blue"]',
    '{"n1": "a red square", "n2": "something blue", "n3": "A red square"}',
    "id,label\r\n0,a red square\r\n1,something blue\r\n",
  ],
)
def test_labels_are_read_as_everywhere(text, port):
  names = ["a red square", "something blue"]
  status, answer = classify(port, [GOOD], [text])
  assert status == 200, answer
  assert answer["labels"] == names
  assert answer == classify(port, [GOOD], names)[1]


def test_names_of_a_label_are_averaged(port, place):
  _, answer = classify(port, [GOOD], ['[["a red one", "a ruby"], "a sky"]'])
  assert answer["labels"] == ["a red one", "a sky"]
  both = place.model.embed_texts(["a red one", "a ruby"]).mean(0)
  image = place.model.embed_images([RED])[0]
  logit = place.model.logit_scale * (image @ both) / np.linalg.norm(both)
  expected = 1 / (1 + np.exp(-logit - place.model.logit_bias))
  found = answer["images"][0]["scores"][0]["probability"]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_no_address_is_absolute(port):
  """So that the page works behind a proxy, at a path of its own."""
  for path in ("/", "/api", "/page.js", "/search.js", "/page.css"):
    _, _, text = ask(port, "GET", path)
    text = text if isinstance(text, str) else text.decode()
    assert not re.search(r"""(["'`(])/[a-z]""", text), path
  addresses = [row["image"] for row in results_of(port, "query=a")]
  assert addresses[0].startswith("api/images/")


def test_all_works_at_a_path_of_its_own(place):
  """Whether a proxy leaves it on or cuts it off."""
  with serve_here(place, place.vectors, prefix="/siglip") as port:
    status, headers, _ = ask(port, "GET", "/siglip")
    assert (status, headers["Location"]) == (307, "siglip/")
    for path in ("/siglip/", "/"):
      assert b"<title>" in ask(port, "GET", path)[2]
      assert ask(port, "GET", f"{path}page.js")[0] == 200
      assert ask(port, "GET", f"{path}api/images/0")[0] == 200
      assert ask(port, "GET", f"{path}healthz")[2]["model"] == "tiny"
    for path in ("/siglipp/", "/other/siglip/"):
      assert ask(port, "GET", path)[0] == 404


def test_a_model_without_a_trained_bias_has_no_sigmoid(place):
  params = {**place.model.params, "logit_bias": np.float32(0)}
  other = types.SimpleNamespace(
    model=dataclasses.replace(place.model, params=params)
  )
  with serve_here(other) as port:
    assert ask(port, "GET", "/healthz")[2]["sigmoid"] is False
    _, answer = classify(port, [GOOD], LABELS)
  scores = answer["images"][0]["scores"]
  assert [score["probability"] for score in scores] == [None] * len(LABELS)
  assert sum(score["softmax"] for score in scores) == pytest.approx(1)


def results_of(port, parameters):
  """Returns the results of a search for one thing."""
  status, _, answer = ask(port, "GET", f"/api/search?{parameters}")
  assert status == 200, answer
  (query,) = answer["queries"]
  return query["results"]


def test_search_equals_numpy(port, place):
  status, _, answer = ask(port, "GET", "/api/search?query=a%20red%20square")
  assert status == 200
  cosines = (place.rows @ place.model.embed_texts(["a red square"]).T)[:, 0]
  order = np.argsort(-cosines)
  results = answer["queries"][0]["results"]
  assert [row["key"] for row in results] == [place.keys[i] for i in order]
  found = [row["score"] for row in results]
  np.testing.assert_allclose(found, cosines[order], atol=1e-6)
  logits = place.model.logit_scale * cosines[order] + place.model.logit_bias
  found = [row["probability"] for row in results]
  np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-4)
  assert results_of(port, "query=a%20red%20square&top=3") == results[:3]


@pytest.mark.parametrize(
  ("parameters", "said"),
  [
    ("", "query: type a sentence, or give an image"),
    ("query=%20", "query: type a sentence, or give an image"),
    ("query=" + "x" * 301, "query: longer than 300 characters"),
    ("query=a&top=0", "top: must be 1 to 100"),
    ("query=a&top=101", "top: must be 1 to 100"),
    ("query=a&top=" + "9" * 5_000, "top: must be 1 to 100"),
    ("query=a&top=-1", "top: must be 1 to 100"),
    ("like=x", "like: must be the id of a result"),
    ("like=99", "like=99: no such result"),
    ("query=a&combine=sum", "combine='sum': must be each or mean"),
    ("query=" + "%0Aa" * 17, "query: 17 lines and images; at most 16"),
    ("query=a&where=size%3E1", "where=size>1: there is no column 'size'; "),
  ],
)
def test_a_bad_search_is_one_clear_line(port, parameters, said):
  status, _, answer = ask(port, "GET", f"/api/search?{parameters}")
  assert status == 400 and answer["error"].startswith(said)
  assert len(answer["error"].splitlines()) == 1


def test_any_sentence_can_be_searched(port):
  for query in ("%FF", "%00", "%F0%9F%91%8B", "%22%27%3B--", "%0A"):
    status, _, _ = ask(port, "GET", f"/api/search?query=x{query}")
    assert status == 200


def test_pictures_are_of_the_embedded_folder_alone(port, place):
  for number, name in enumerate(pages.COLOURS):
    status, headers, picture = ask(port, "GET", f"/api/images/{number}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(picture)) as image:
      assert max(image.size) <= 320
      colour = np.asarray(image).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(colour, pages.COLOURS[name], atol=12)
  for number in range(len(pages.COLOURS), len(place.keys)):
    status, _, answer = ask(port, "GET", f"/api/images/{number}")
    assert (status, answer) == (404, {"error": "no such image"}), number


def test_a_link_within_the_folder_is_shown(place, tmp_path):
  with serve_here(place, place.vectors) as port:
    target = place.photos / "folder" / "moved.png"
    (place.photos / "red.png").rename(target)
    (place.photos / "red.png").symlink_to(target)
    try:
      assert ask(port, "GET", "/api/images/0")[0] == 200
    finally:
      (place.photos / "red.png").unlink()
      target.rename(place.photos / "red.png")


@pytest.mark.parametrize(
  "path",
  [
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/page.css/../../app.py",
    "/app.py",
    "/page.html",
    "//etc/passwd",
    "/api/images/../../secret.png",
    "/api/images/..%2f..%2fsecret.png",
    "/api/images/red.png",
    "/api/images/-1",
    "/api/images/1e3",
    "/api/images/%00",
    "/api/images/99999",
    "/api/images/" + "9" * 5_000,
    "/api/images/٣",
  ],
)
def test_no_path_leads_to_a_file(port, path):
  with socket.create_connection(("127.0.0.1", port)) as connection:
    # Not what a client library would make of it.
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close"
    connection.sendall(request.encode() + b"\r\n\r\n")
    answer = connection.makefile("rb").read()
  status = int(answer.split()[1])
  # Bytes that no path may hold do not get past the server's parser.
  assert status == (404 if path.isascii() else 400)
  assert b"root:" not in answer and b"import" not in answer


@pytest.mark.parametrize(
  ("host", "status"),
  [
    ("localhost:1", 200),
    ("LOCALHOST", 200),
    ("127.0.0.1", 200),
    ("[::1]:80", 200),
    ("192.168.1.7:8000", 200),
    (socket.gethostname(), 200),
    ("evil.example", 400),
    ("evil.example:80", 400),
    ("localhost.evil.example", 400),
    ("[", 400),
    ("", 400),
  ],
)
def test_other_sites_names_are_refused(port, host, status):
  found, _, answer = ask(port, "GET", "/healthz", headers={"Host": host})
  assert found == status
  if status == 400:
    assert answer == {"error": "this server is not known by that name (Host)"}


def test_every_answer_keeps_other_sites_out(port):
  for method, path in [
    ("GET", "/"),
    ("GET", "/page.js"),
    ("GET", "/page.css"),
    ("GET", "/api/images/0"),
    ("GET", "/nowhere"),
    ("DELETE", "/"),
    ("POST", "/api/classify"),
  ]:
    _, headers, _ = ask(port, method, path)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Server"] is None


def test_requests_at_once_get_their_own_answers(port, place):
  def one(number):
    if number % 2:
      query = f"{number}%20things"
      answer = ask(port, "GET", f"/api/search?query={query}")[2]
      return answer["queries"][0]["parts"][0]["text"]
    image = place.photos / f"{list(pages.COLOURS)[number % 4]}.png"
    status, answer = classify(port, [image], [f"label {number}", "other"])
    assert status == 200, answer
    scores = answer["images"][0]["scores"]
    expected = place.model.probabilities([image], answer["labels"])[0]
    found = [score["probability"] for score in scores]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    return answer["labels"][0]

  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    names = list(pool.map(one, range(24)))
  expected = [f"{i} things" if i % 2 else f"label {i}" for i in range(24)]
  assert names == expected


def test_slow_and_cut_off_uploads_hold_nobody_up(port, place):
  body, headers = form([GOOD], LABELS)
  lines = [
    "POST /api/classify HTTP/1.1",
    "Host: localhost",
    f"Content-Type: {headers['Content-Type']}",
    f"Content-Length: {len(body)}",
  ]
  head = "\r\n".join([*lines, "", ""]).encode()
  slow = socket.create_connection(("127.0.0.1", port))
  slow.sendall(head + body[:100])
  for _ in range(20):  # More than may be under way, each gone at once.
    with socket.create_connection(("127.0.0.1", port)) as cut_off:
      cut_off.sendall(head + body[:100])
  with socket.create_connection(("127.0.0.1", port)) as cut_off:
    cut_off.sendall(head[:30])
  for _ in range(100):  # Until the server has seen that they are gone.
    if classify(port, [GOOD], LABELS)[0] == 200:
      break
    time.sleep(0.1)
  assert_scores_are_right(port, place)
  with slow:
    slow.sendall(body[100:])
    answer = http.client.HTTPResponse(slow)
    answer.begin()
    assert answer.status == 200


def test_an_upload_that_takes_too_long_is_ended(place):
  body, headers = form([GOOD], LABELS)
  headers["Content-Length"] = len(body)
  with serve_here(place, upload_seconds=0.2) as port:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
      connection.putrequest("POST", "/api/classify")
      for name, value in headers.items():
        connection.putheader(name, value)
      connection.endheaders(body[:100])
      answer = connection.getresponse()
      assert answer.status == 408
      assert b"took more than 0.2 seconds" in answer.read()
    assert_scores_are_right(port, place)


def test_what_is_too_much_at_once_is_refused_in_words(place):
  with serve_here(place, waiting=0) as port:
    assert classify(port, [GOOD], ["a"]) == (
      503,
      {"error": "the model is busy; try again in a moment"},
    )
  with serve_here(place, uploads=0) as port:
    assert classify(port, [GOOD], ["a"]) == (
      503,
      {"error": "too many uploads; try again in a moment"},
    )


def test_texts_are_searched_as_well(place):
  texts = ["two red squares", "a blue one", "nothing"]
  folder = pages.embed_texts(place, texts)
  with serve_here(place, folder) as port:
    _, _, answer = ask(port, "GET", "/api/search?query=a%20blue%20one")
    assert ask(port, "GET", "/api/images/0")[0] == 404
  assert answer["kind"] == "texts"
  results = answer["queries"][0]["results"]
  first = results[0]
  assert (first["text"], first["key"]) == ("a blue one", "1")
  assert first["score"] == pytest.approx(1, abs=1e-5)
  # Two texts were never a pair in training.
  assert first["probability"] is None
  assert sorted(row["text"] for row in results) == sorted(texts)


def test_without_embeddings_there_is_no_search(place):
  with serve_here(place) as port:
    assert ask(port, "GET", "/healthz")[2]["search"] is None
    status, _, answer = ask(port, "GET", "/api/search?query=a")
    assert (status, ask(port, "GET", "/api/images/0")[0]) == (404, 404)
    assert "start with --embeddings=DIR" in answer["error"]


def test_a_fault_of_ours_is_told_without_its_trace(place, capfd):
  shard = place.folder / "vectors" / "shard-000000.parquet"
  with serve_here(place, place.vectors) as port:
    shard.rename(place.folder / "away")
    try:
      status, _, answer = ask(port, "GET", "/api/search?query=a")
    finally:
      (place.folder / "away").rename(shard)
    assert (status, answer) == (
      500,
      {"error": "the server failed; see its log"},
    )
    assert ask(port, "GET", "/api/search?query=a")[0] == 200
  assert "shard-000000.parquet" in capfd.readouterr().err


def test_mistakes_at_the_start_are_one_line(place, port):
  good = f"--checkpoint={place.checkpoint}"
  for flags, expected in [
    ([], "--checkpoint=MODEL must be given"),
    ([good, "more"], "'more': belongs to no flag"),
    ([good, "--port=65536"], "--port=65536: must be 0 to 65535"),
    ([good, f"--port={port}"], f"--port={port}: Address already in use"),
    ([good, "--host=no.such.host.invalid"], "--host=no.such.host.invalid "),
    (["--checkpoint=nowhere"], "nowhere: no such file or folder"),
    ([good, "--embeddings=tests"], "tests: holds no embeddings"),
    ([good, "--classifier=tests"], "tests: holds no classifier"),
    ([good, "--prefix=siglip"], "--prefix=siglip: must begin with a slash"),
    ([good, "--index=best"], "--index=best: must be exact, "),
  ]:
    flags = ["tools/serve.py", "--port=0", *flags]
    assert expected in programs.said_in_one_line(*flags)


def test_embeddings_of_another_model_are_refused(place, tmp_path):
  other = tmp_path / "vectors"
  other.mkdir()
  for file in place.vectors.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  text = (other / "_embedding.json").read_text()
  made = text.replace('"parameters": "', '"parameters": "0')
  (other / "_embedding.json").write_text(made)
  with pytest.raises(UserError, match="other parameters"):
    Gallery(other, place.model, str(place.checkpoint), Limits())


MISSING = "error: big-siglip serve needs {}: pip install 'big_siglip[serve]'\n"


@pytest.mark.parametrize("name", ["uvicorn", "python_multipart"])
def test_a_library_that_is_missing_is_named(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  flags = ["--checkpoint=x", "--port=0"]
  said = programs.said_in_one_line("tools/serve.py", *flags)
  assert said == MISSING.format(name)


def test_a_library_of_the_page_that_is_missing_is_named():
  """In a process of its own: in this one the page has it already."""
  program = (
    "import runpy, sys; sys.modules['starlette'] = None; "
    "sys.argv = ['serve', '--checkpoint=x', '--port=0']; "
    "runpy.run_path('tools/serve.py', run_name='__main__')"
  )
  status, output, said = programs.start("-c", program)
  assert (status, output, said) == (2, "", MISSING.format("starlette"))


def test_the_whole_network_is_warned_of_and_a_signal_ends_it(place):
  flags = [f"--checkpoint={place.checkpoint}", "--host=0.0.0.0"]
  names = "--names=photos.example,Other.Example"
  with pages.serve(*flags, names) as (port, process, errors):
    for host, status in [
      ("photos.example", 200),
      ("other.example:80", 200),
      ("evil.example", 400),
    ]:
      found, *_ = ask(port, "GET", "/healthz", headers={"Host": host})
      assert found == status
    # One that is under way does not keep it.
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(b"POST /api/classify HTTP/1.1\r\nHost: localhost\r\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    slow.close()
  (said,) = pages.apart_from_progress(errors)
  assert said.startswith("warning: --host=0.0.0.0: whoever reaches this")
