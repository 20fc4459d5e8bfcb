"""Trains a SentencePiece tokenizer on the captions of any data set."""

from big_siglip.commands import train_tokenizer
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(train_tokenizer)
