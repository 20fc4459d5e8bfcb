"""The files of a tar: found from its headers alone, which may be hostile."""

from collections.abc import Iterator
import io
import tarfile
from typing import NamedTuple

from big_siglip.data.sources.tar_reading import Read

BLOCK = tarfile.BLOCKSIZE  # 512 bytes.
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_BYTES = (b"1", b"2", b"3", b"4", b"5", b"6")  # Links, folders, pipes.
_LONG = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.SOLARIS_XHDTYPE,
)
_SPARSE = tarfile.GNUTYPE_SPARSE
_SPARSE_NAME = "GNU.sparse.name"  # PAX's field of a sparse file.
# Bytes of a long name or of PAX's fields, and of a file: more is no name, and
# no image.
_LARGEST_HEADER = 2**18
_LARGEST_FILE = 2**30
_DIGITS = 8  # Of the length of a PAX field.
_LARGEST_OFFSET = 2**62  # Bytes: further no file reaches.


class Member(NamedTuple):
  """A file in a tar."""

  name: str
  header: int  # Where its first header starts, in bytes.
  start: int  # Where its bytes start.
  size: int
  is_sparse: bool = False  # Holes are left out: see `content`.


class Damaged(Exception):
  """What follows in a tar cannot be read."""


def members(read: Read, start: int, stop: int) -> Iterator[Member]:
  """Yields the regular files of a tar between two headers, in order.

  GNU's and PAX's long names are read. tarfile knows them too, but builds an
  object of 20 attributes for each file, at several times the time. The last
  file may reach beyond `stop`.

  Args:
    read: (start, stop) -> the bytes of the tar.
    start: of a header, in bytes.
    stop: the end of the tar, or of a sample.

  Raises:
    Damaged: a header is no header, or the tar ends within a file.
  """
  position, first, told = start, start, {}
  reach = start
  while position < stop:
    header = read(position, position + BLOCK)
    if len(header) < BLOCK:
      raise Damaged(f"ends within a header, at byte {position}")
    if not header[0] and header.count(0) == BLOCK:
      return  # What closes a tar.
    kind, own_name, own_size = _parse(header, position)
    data = position + BLOCK
    if kind in _LONG:
      if not 0 <= own_size <= _LARGEST_HEADER:
        raise Damaged(f"a name of {own_size} bytes at byte {position}")
      told |= _long(kind, read(data, data + own_size))
      reach, position = data + own_size, data + padded(own_size)
      continue
    length = _length(told.get("size", own_size), position)
    if kind in _WITHOUT_BYTES:  # Whatever their headers say.
      length = 0
    data = _after_map(kind, read, header, data)
    if kind in (*_REGULAR, _SPARSE):
      name = told.get(_SPARSE_NAME, told.get("path", own_name))
      is_sparse = kind == _SPARSE or any(map(_is_of_sparse, told))
      yield Member(name, first, data, length, is_sparse)
    reach, position = data + length, data + padded(length)
    if kind != tarfile.XGLTYPE:
      first, told = position, {}
  if reach > stop:
    raise Damaged(f"ends within a file, which would reach to byte {reach}")


def _is_of_sparse(key: str) -> bool:
  return key.startswith("GNU.sparse.")


def _parse(header: bytes, position: int) -> tuple[bytes, str, int]:
  """Returns type, name and size of a header.

  Raises:
    Damaged: it is none.
  """
  try:
    if header[257:262] != b"ustar":  # Before POSIX: its checksum must tell.
      checksum = int(header[148:156].strip(b"\0 "), 8)
      # The field itself counts as eight spaces.
      if checksum != sum(header) - sum(header[148:156]) + 256:
        raise ValueError
    if header[124] & 0x80:  # More than 8 GiB: base 256.
      size = int.from_bytes(header[125:136], "big", signed=header[124] == 255)
    else:
      size = int(header[124:136].strip(b"\0 ") or b"0", 8)
  except ValueError:
    raise Damaged(f"no tar header at byte {position}") from None
  name = header[:100].split(b"\0", 1)[0]
  if header[345] and header[257:263] == b"ustar\0":
    name = header[345:500].split(b"\0", 1)[0] + b"/" + name
  return header[156:157], name.decode("utf-8", "surrogateescape"), size


def _length(size: int | str, position: int) -> int:
  """Returns bytes of a file, which PAX may have told in anything but digits."""
  try:
    length = int(size)
  except ValueError:  # No digits, or thousands of them.
    length = -1
  if not 0 <= length < _LARGEST_OFFSET:
    raise Damaged(f"no size of a file at byte {position}")
  return length


def _long(kind: bytes, text: bytes) -> dict[str, str]:
  """Returns what GNU or PAX say ahead of a header: "path", "size".

  A PAX field is "LENGTH KEY=VALUE" and a newline.

  Raises:
    Damaged: PAX's fields are none.
  """
  fields = {}
  if kind == tarfile.GNUTYPE_LONGNAME:
    name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return {"path": name}
  if kind == tarfile.GNUTYPE_LONGLINK:
    return fields
  start = 0
  while start < len(text):
    space = text.find(b" ", start, start + _DIGITS + 1)
    length = text[start:space] if space > 0 else b""
    stop = start + int(length) if length.isdigit() else 0
    if not space + 2 < stop <= len(text):
      if not text[start:].strip(b"\0"):
        break
      raise Damaged("ends within PAX's fields, or they are none")
    line = text[space + 1 : stop - 1]
    key, _, value = line.partition(b"=")
    fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    start = stop
  return fields


def _after_map(kind: bytes, read: Read, header: bytes, position: int) -> int:
  """Returns where a file's bytes start: a sparse one's after all of its map."""
  if kind != _SPARSE:
    return position
  block, more = header, 482  # Where a header says that another one follows.
  while len(block) == BLOCK and block[more]:
    block, more = read(position, position + BLOCK), 504
    position += BLOCK
  return position


def content(read: Read, member: Member, stop: int) -> bytes:
  """Returns the bytes of a file, with the holes of a sparse one.

  Args:
    read: (start, stop) -> the bytes of the tar.
    member: the file.
    stop: the end of the tar, or of the sample.

  Raises:
    Damaged: the tar ends within it, or it is larger than any image.
  """
  if member.size > _LARGEST_FILE:
    raise Damaged(f"{member.name} has {member.size} bytes")
  end = member.start + member.size
  data = read(member.start, min(end, stop))
  if len(data) < member.size:
    raise Damaged(f"the shard ends within {member.name}")
  if not member.is_sparse:
    return data
  file = io.BytesIO(read(member.header, member.start) + data)
  try:
    with tarfile.open(fileobj=file) as tar:
      found = tar.next()
      if found is None or not 0 <= found.size <= _LARGEST_FILE:
        raise Damaged(f"{member.name} is sparse, of no size")
      return tar.extractfile(found).read()
  except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
    raise Damaged(f"{member.name} is sparse: {error}") from error


def padded(size: int) -> int:
  """Returns the bytes of whole blocks that hold so many."""
  return -(-size // BLOCK) * BLOCK
