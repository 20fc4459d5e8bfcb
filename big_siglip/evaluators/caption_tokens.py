"""Words of a caption, as the metrics of COCO's captions count them.

These are the Penn Treebank's, in lower case and without punctuation: Chen et
al. 2015 (arXiv:1504.00325, section 4). There the Stanford tokenizer, a Java
program, makes them. Here expressions do, which agree with it on all but rare
texts (docs/evaluation.md has the measured share). Its habits that touch scores
are kept: brackets are words ("-lrb-"), and so are "?!" and "!!".
"""

import re

# What COCO's tools leave out. Their list has brackets too, in capitals, so that
# it never finds them.
_PUNCTUATION = frozenset(
  ["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_SIGNS = str.maketrans(
  {
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2013\u2014", " -- "),
    "\u2026": "...",
    "\u20ac": "$",  # The Treebank knew no euro,
    "\u00a3": "#",  # and wrote pounds so.
  }
)
_BRACKETS = str.maketrans(
  {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
  }
)
# Words that end in a point which is a part of them.
_SHORT = (
  "mr|mrs|ms|dr|prof|st|mt|ft|jr|sr|gen|sen|rep|gov|pres|capt|col|lt|sgt|rev|"
  "ave|blvd|rd|inc|ltd|co|corp|bros|dept|esq|etc|vs|ph\\.d|pp|fig|jan|feb|mar|"
  "apr|jun|jul|aug|sept|oct|nov|dec|mon|tues|wed|thurs|fri"
)
# Signs within a word join it, apostrophes before a letter alone.
_WORD = r"\w(?:\w|'(?=[^\W\d_]))*"
_TOKEN = re.compile(
  rf"""
  (?:https?://|www\.)\S*[\w/]              # Addresses of pages,
  | [\w.+-]+@[\w-]+(?:\.[\w-]+)*           # and of people.
  | </?[a-z][^<>\s]*>
  | [@#][a-z_]\w*
  | \b(?:{_SHORT})\.(?!\w)
  | \bno\.(?=\s*\d)
  | \b(?:[a-z]\.)+[a-z]\b\.?               # p.m., u.s
  | \b[a-z]\.(?!\w)                         # Initials.
  | (?-i:[A-Z]+&[A-Z]+)
  | (?<!\w)'(?:em|cause|till?|n'(?=\s)) # 'em, 'cause, rock 'n' roll
  | '(?:s|re|ve|ll|d|m)\b                   # Written apart already.
  | (?<!\w)'t(?:is|was)\b
  | (?<!\w)'\d0s\b
  | \bol'(?!\w)
  | [-+]?\b\d+(?:[.,:/-]\d+)+(?:-[^\W\d_]+)*  # 1,000, 9/11, 1.5-inch
  | (?<!\w)[-+]\d+
  | {_WORD}(?:[-/.]{_WORD})*               # t-shirt, and/or
  | \.\.+ | --+ | [!?]{{2,}}
  | \S
  """,
  re.VERBOSE | re.IGNORECASE,
)
_ENDING = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?=['-]|$)")
_APART = {
  "".join(words): list(words)
  for words in (
    *(("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na")),
    *(("gim", "me"), ("lem", "me"), ("'t", "is"), ("'t", "was")),
    *(("more", "'n"), ("y'", "all"), ("rock", "'n'", "roll")),
  )
}


def tokenize(text: str) -> list[str]:
  """Returns the words of a text; none of one that has none."""
  found = _TOKEN.findall(text.translate(_SIGNS))
  words = [word for token in found for word in _apart(token.lower())]
  return [word for word in words if word not in _PUNCTUATION]


def _apart(token: str) -> list[str]:
  """Returns what the Treebank writes apart: is n't, dog 's."""
  if token in _APART:
    return _APART[token]
  if token.startswith(("..", "--")):
    return []
  if "'" not in token:
    return [token.translate(_BRACKETS)]
  parts = _ENDING.sub(lambda m: f" {m[1]} ", token).split()
  words = []
  for part in parts:
    # What follows an ending goes on as a word of its own.
    part = part.lstrip("-") or part
    words += _APART.get(part, [part])
  return words
