"""Runs a command beside an object store on this machine, whose bucket is gs://wmpoe.

  pip install gcsfs gcp-storage-emulator
  python tests/fake_object_store.py -- python -m wmpoe train --config=configs/cards.py:base \
      --workdir=gs://wmpoe/run

The emulator speaks the protocol of Google Cloud Storage but for the conditions of a write:
TensorStore, which checkpoints are written with, asks which generation of an object it has read and
replaces no other. These are added here. What is in the bucket is gone when the command ends.
"""

from collections.abc import Callable
import http
import os
import subprocess
import sys
import threading
from typing import Any

from gcp_storage_emulator import exceptions
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

_PORT = 9023
_BUCKET = 'wmpoe'
_one_at_a_time = threading.RLock()


def _generation(request: Any, storage: Any, name: str) -> str:
  try:
    return storage.get_file_obj(request.params['bucket_name'], name)['generation']
  except exceptions.NotFound:
    return '0'


def _on_condition(handle: Callable[..., None], name_of: Callable[[Any], str]
                  ) -> Callable[..., None]:
  """The handler, which refuses if the object is not of the generation that is asked for."""
  def handler(request, response, storage, *args, **kwargs):
    with _one_at_a_time:
      wanted = request.query.get('ifGenerationMatch')
      if wanted and wanted[0] != _generation(request, storage, name_of(request)):
        response.status = http.HTTPStatus.PRECONDITION_FAILED
      else:
        handle(request, response, storage, *args, **kwargs)
  return handler


def _telling(handle: Callable[..., None]) -> Callable[..., None]:
  """The handler of a download, which says what generation it is of."""
  def handler(request, response, storage, *args, **kwargs):
    with _one_at_a_time:
      handle(request, response, storage, *args, **kwargs)
      response['x-goog-generation'] = _generation(request, storage, request.params['object_id'])
  return handler


def add_conditions() -> None:
  """Replaces the emulator's handlers by those that know of generations."""
  replaced = {
      objects.download: _telling(objects.download),
      objects.insert: _on_condition(objects.insert, lambda r: r.query.get('name', [''])[0]),
      objects.delete: _on_condition(objects.delete, lambda r: r.params['object_id'])}
  server.HANDLERS = tuple(
      (pattern, {verb: replaced.get(handle, handle) for verb, handle in handlers.items()})
      for pattern, handlers in server.HANDLERS)
  objects.download = replaced[objects.download]  # which objects.get calls


def main(argv: list[str]) -> int:
  """Runs the command and returns its exit code."""
  if argv[:1] != ['--'] or not argv[1:]:
    sys.exit(f'Expected a command: python tests/fake_object_store.py -- COMMAND; got {argv}.')
  add_conditions()
  address = f'http://127.0.0.1:{_PORT}'
  with server.create_server('127.0.0.1', _PORT, True, _BUCKET):
    return subprocess.run(argv[1:], check=False, env={
        **os.environ, 'STORAGE_EMULATOR_HOST': address, 'TENSORSTORE_GCS_HTTP_URL': address,
        'GOOGLE_CLOUD_PROJECT': _BUCKET, 'NO_GCE_CHECK': 'true',
        # Which asks Google what kind of bucket it is, and waits for the answer, again and again.
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}).returncode


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
