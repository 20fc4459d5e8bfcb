"""Finds the images or texts nearest to a query, among those of embed.

big-siglip search --embeddings=vectors --query="a dog on a beach"
big-siglip search --embeddings=vectors --image=dog.jpg --top=3 --json

The cosine with every row is computed on the device, block by block, so that
memory does not grow with their number. Other indexes look at few of the rows;
they are made once, and follow the folder after an update:

--index=lancedb  a database beside the embeddings, for millions of rows
--index=hnsw     a graph in memory, by faiss
--index=milvus   a server, of --database, for more than one machine holds

The first two need big_siglip[search], the last big_siglip[milvus];
docs/embeddings.md compares them.
"""

import json
import pathlib
import sys

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import sight
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "The model; the one that made the embeddings unless given.",
)
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "The folder to search.")
_QUERY = flags.DEFINE_string("query", None, "A text to look for.")
_IMAGE = flags.DEFINE_string("image", None, "Or the file of an image.")
_TOP = flags.DEFINE_integer("top", 10, "Results to print.")
_INDEX = flags.DEFINE_string(
  "index", "exact", "How to search: exact, hnsw, lancedb or milvus."
)
_DATABASE = flags.DEFINE_string(
  "database",
  "",
  "Of --index=milvus: http://HOST:19530; $MILVUS_TOKEN opens it.",
)
_COLLECTION = flags.DEFINE_string(
  "collection", "", "Its name in the database; the folder's unless given."
)
_WHERE = flags.DEFINE_string(
  "where", None, "Rows to look at: 'width > 100 and key like \"holiday/%\"'."
)
_JSON = flags.DEFINE_bool("json", False, "Print the results as JSON.")


def main(argv: list[str]) -> None:
  """Prints the nearest rows, a line each."""
  logging.set_verbosity(logging.ERROR)
  # A text or a file's name may hold what the terminal's encoding does not.
  sys.stdout.reconfigure(errors="backslashreplace")
  with exit_on_error():
    _check_flags(argv[1:])
    with progress.loading():
      from big_siglip import embeddings, platforms
      from big_siglip.data.embedding_description import check_whole
      from big_siglip.embeddings import index

    choice = index.Choice(_INDEX.value, _DATABASE.value, _COLLECTION.value)
    choice.check()
    folder = pathlib.Path(_EMBEDDINGS.value).expanduser()
    reader = embeddings.Reader(folder)
    check_whole(reader.description, folder)
    if not reader.is_whole:
      count, total = len(reader.shards), reader.description.num_shards
      print(f"note: {folder} has {count} of {total} shards", file=sys.stderr)
    platforms.prepare()
    query = _embed_query(reader)
    scores, numbers = _search(reader, choice, query)
    rows = reader.records(numbers)
  results = [
    {**row, "score": float(score)}
    for row, score in zip(rows, scores, strict=True)
  ]
  if _JSON.value:
    print(
      json.dumps({"query": _QUERY.value or _IMAGE.value, "results": results})
    )
    return
  for row in results:
    text = f"  {row['text']}" if row["text"] is not None else ""
    print(f"{row['score']:7.4f}  {row['key']}{text}")


def _check_flags(arguments: list[str]) -> None:
  if not _EMBEDDINGS.value:
    raise UserError("--embeddings=DIR must be given")
  if bool(_QUERY.value) == bool(_IMAGE.value):
    raise UserError("either --query=TEXT or --image=FILE must be given")
  if _TOP.value < 1:
    raise UserError(f"--top={_TOP.value}: must be at least 1")
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")


def _embed_query(reader):
  """Returns [1, E] float32."""
  from big_siglip import embeddings
  from big_siglip.data.images import BadImage
  from big_siglip.embeddings import description as descriptions

  checkpoint = _CHECKPOINT.value or reader.description.checkpoint
  seen = reader.description.preprocessing or {}
  model = sight.load(checkpoint, max_patches=seen.get("max_patches"))
  with progress.waiting("naming the model by its parameters", after=4):
    made = embeddings.describe_model(model, checkpoint)
  descriptions.check_model(reader.folder, reader.description, made)
  if _QUERY.value:
    return model.embed_texts([_QUERY.value])
  try:
    return model.embed_prepared([model.prepare_image(_IMAGE.value)])
  except OSError as error:
    raise UserError(f"--image={_IMAGE.value}: {error.strerror}") from error
  except BadImage as error:
    raise UserError(f"--image={_IMAGE.value}: {error}") from error


def _search(reader, choice, query):
  """Returns cosines and numbers of the rows, the best first."""
  from big_siglip.embeddings import index

  found = index.open_index(reader, choice, _say)
  with progress.waiting("searching"):
    scores, numbers = found.search(query, _TOP.value, _WHERE.value)
  there = numbers[0] >= 0
  return scores[0][there], numbers[0][there]


def _say(line: str) -> None:
  progress.say(f"note: {line}")
