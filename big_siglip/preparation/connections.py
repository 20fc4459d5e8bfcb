"""Connections that do not wait for ever for the head of an answer.

A timeout of a socket starts anew with every byte, and the head is read whole
before a caller sees any of it: a server that drips could hold one for days.
"""

import contextlib
import socket
import threading

import urllib3


class _Hasty:
  """Ends a connection whose answer's head takes longer than `max_seconds`."""

  def __init__(self, *args, max_seconds: float, **kwargs):
    super().__init__(*args, **kwargs)
    self._max_seconds = max_seconds

  def getresponse(self):
    ended = threading.Event()
    timer = threading.Timer(self._max_seconds, _end, [self.sock, ended])
    timer.daemon = True
    timer.start()
    try:
      response = super().getresponse()
    finally:
      timer.cancel()
    if ended.is_set():  # To http.client, a head that just stops is whole.
      raise TimeoutError("the head of the answer took too long")
    return response


class _HTTPConnection(_Hasty, urllib3.connection.HTTPConnection):
  pass


class _HTTPSConnection(_Hasty, urllib3.connection.HTTPSConnection):
  pass


class HTTPPool(urllib3.HTTPConnectionPool):
  """urllib3's, which also takes `max_seconds`."""

  ConnectionCls = _HTTPConnection


class HTTPSPool(urllib3.HTTPSConnectionPool):
  """urllib3's, which also takes `max_seconds`."""

  ConnectionCls = _HTTPSConnection


def _end(connection: socket.socket, ended: threading.Event) -> None:
  ended.set()
  with contextlib.suppress(OSError):  # It ended by itself meanwhile.
    connection.shutdown(socket.SHUT_RDWR)
