"""The same work by tf.data: decode_jpeg, resize, a SentencePiece tokenizer."""

import pathlib
import sys
import tarfile

from rate import rate
import tensorflow as tf
import tensorflow_text as tf_text

SIZE, LENGTH, BATCH = 224, 64, 128


def main(folder: str, tokenizer: str, seconds: float) -> None:
  """Prints what `rate` returns."""
  record = pathlib.Path(folder) / "images.tfrecord"
  if not record.exists():
    write(pathlib.Path(folder), str(record))
  with open(tokenizer, "rb") as f:
    model = tf_text.SentencepieceTokenizer(f.read(), add_eos=True)
  features = {k: tf.io.FixedLenFeature([], tf.string) for k in ("jpg", "txt")}

  def load(serialized):
    example = tf.io.parse_single_example(serialized, features)
    image = tf.io.decode_jpeg(example["jpg"], channels=3)
    image = tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)
    tokens = model.tokenize(tf.strings.lower(example["txt"]))[:LENGTH]
    padding = [[0, LENGTH - tf.shape(tokens)[0]]]
    return image, tf.ensure_shape(tf.pad(tokens, padding), (LENGTH,))

  batches = iter(
    tf.data.TFRecordDataset(str(record))
    .repeat()
    .shuffle(1_000)
    .map(load, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(BATCH, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
    .as_numpy_iterator()
  )
  print(*rate(batches, BATCH, seconds))


def write(folder: pathlib.Path, record: str) -> None:
  """Writes the shards' examples as TFRecord."""
  with tf.io.TFRecordWriter(record) as writer:
    for shard in sorted(folder.glob("*.tar")):
      with tarfile.open(shard) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
      for key in sorted({name.split(".")[0] for name in members}):
        feature = {
          kind: tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[members[f"{key}.{kind}"]])
          )
          for kind in ("jpg", "txt")
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writer.write(example.SerializeToString())


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
