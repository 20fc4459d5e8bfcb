"""`python -m big_siglip` is the command `big-siglip`."""

from big_siglip.commands.main import main

if __name__ == "__main__":
  main()
