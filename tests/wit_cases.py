"""Tables and files as WIT and wit_base have them, of a few drawn images."""

import csv
import gzip
import io
import json
import tarfile

import image_server
import pyarrow as pa
import pyarrow.parquet as pq

_COLUMNS = (
  "language page_url image_url page_title section_title "
  "hierarchical_section_title caption_reference_description "
  "caption_attribution_description caption_alt_text_description mime_type "
  "original_height original_width is_main_image attribution_passes_lang_id "
  "page_changed_recently context_page_description context_section_description"
)
COLUMNS = _COLUMNS.split()


def row(url, language="en", **fields):
  """Returns a row with all columns, {column: text}."""
  defaults = dict.fromkeys(COLUMNS, "")
  defaults.update(
    language=language,
    page_url=f"https://{language}.wikipedia.org/wiki/Page",
    image_url=url,
    page_title="Page",
    caption_reference_description=f"a picture in {language}",
    mime_type="image/jpeg",
    original_height="30",
    original_width="40",
    is_main_image="true",
    attribution_passes_lang_id="true",
    page_changed_recently="false",
    context_page_description='It says "tab\t" and\na new line.',
  )
  return {**defaults, **fields}


def write_table(path, rows, columns=COLUMNS):
  """Writes a .tsv.gz."""
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, delimiter="\t", extrasaction="ignore")
  writer.writeheader()
  writer.writerows(rows)
  path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
  return str(path)


def write_wit_base(path, urls, as_structs=True):
  """Writes Parquet with the columns of wikimedia/wit_base."""
  names = ("language", "page_url", "attribution_passes_lang_id")
  captions = ("caption_alt_text_description", "caption_reference_description")
  articles = [
    dict(zip((*names, *captions), values, strict=True))
    for values in (
      ("en", "https://en.wikipedia.org/wiki/A", "true", None, "a reference"),
      ("de", "https://de.wikipedia.org/wiki/B", "false", "ein Bild", None),
    )
  ]
  if not as_structs:  # As `datasets` writes a Sequence of a dict.
    articles = {name: [a[name] for a in articles] for name in articles[0]}
  rows = [
    {
      "image": {"bytes": image_server.picture(i), "path": f"{i}.jpg"},
      "image_url": url,
      "embedding": [0.0] * 2048,
      "metadata_url": f"http://commons.wikimedia.org/wiki/File:{i}.jpg",
      "original_height": 300,
      "original_width": 400,
      "mime_type": "image/jpeg",
      "caption_attribution_description": f"English: number {i}",
      "wit_features": articles,
    }
    for i, url in enumerate(urls)
  ]
  pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
  return str(path)


def write_odd_parquet(file, images):
  """Writes rows "0", "1", ... of which "1" is said to be text and is not."""
  texts = [b"\xff\xfe" if i == 1 else b"%d" % i for i in range(len(images))]
  _, offsets, data = pa.array(texts, pa.binary()).buffers()
  text = pa.Array.from_buffers(pa.string(), len(texts), [None, offsets, data])
  pq.write_table(pa.table({"image": images, "text": text}), file)


def write_tar(path, examples):
  """Writes a shard: {key: {suffix: bytes, text or fields of .json}}."""
  with tarfile.open(path, "w") as tar:
    for key, members in examples.items():
      for suffix, data in members.items():
        if isinstance(data, dict):
          data = json.dumps(data)
        data = data.encode() if isinstance(data, str) else data
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  return str(path)
