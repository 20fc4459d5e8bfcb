"""What happens to a text before it is cut into tokens.

Any text passes: what is not Unicode (half of a surrogate pair, as JSON may
hold) becomes U+FFFD. Zero-width and control characters, NUL with them, emoji,
and the order of right-to-left writing stay as they are; whether characters are
unified (NFKC) is the tokenizer's own business: SentencePiece models carry a
rule for it, c4_en's does, Gemma's does not.
"""

import html
import re
import string

_REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prepare(text: str, clean: str, lowercase: bool) -> str:
  """Returns a text as a tokenizer gets it; never fails.

  Args:
    text: a caption or a prompt.
    clean: "none": as it is, which is what SigLIP trained on; "html": entities
      such as &amp; are resolved, twice (&amp;amp; is common), and white space
      collapses, as in open_clip's tokenizer.py; "canonical": that, then
      `canonicalize`, as transformers' SiglipTokenizer does with every text.
    lowercase: A-Z become a-z, and no other letters do: tf.strings.lower, with
      which SigLIP trained.
  """
  # Joins what two halves of a character make, and replaces one alone.
  text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  if clean != "none":
    text = " ".join(html.unescape(html.unescape(text)).split())
  if clean == "canonical":
    text = canonicalize(text)
  return text.encode().lower().decode() if lowercase else text


def canonicalize(text: str, *, keep_punctuation: str = "") -> str:
  """Returns `text` as zero-shot evaluation writes class names and prompts.

  Underscores become spaces, ASCII punctuation goes, letters are lowercased and
  white space collapses: big_vision's evaluators/proj/image_text/
  prompt_engineering.py. SigLIP's training captions were not canonicalised.

  Args:
    text: a class name, a template or a caption.
    keep_punctuation: an exact string to keep, such as "{}" in a template.
  """
  text = text.replace("_", " ")
  parts = text.split(keep_punctuation) if keep_punctuation else [text]
  parts = [part.translate(_REMOVE_PUNCTUATION) for part in parts]
  return re.sub(r"\s+", " ", keep_punctuation.join(parts).lower()).strip()
