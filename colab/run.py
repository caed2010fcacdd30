"""Executes the notebooks of this folder on this machine, one after another, and keeps the results.

    python colab/run.py                       all of them
    python colab/run.py 00_products_of_experts.ipynb

What they print and draw goes to outputs/colab/; the notebooks themselves stay as they are, without
outputs. Needs the extra `colab`.
"""

import pathlib
import sys
import time

_HERE = pathlib.Path(__file__).parent


def main(names: list[str]) -> int:
  """Runs the named notebooks, or all; returns 1 if one of them fails, naming it and its cell."""
  import nbclient
  import nbformat

  out = pathlib.Path('outputs/colab')
  out.mkdir(parents=True, exist_ok=True)
  paths = [_HERE / name for name in names] or sorted(_HERE.glob('*.ipynb'))
  failed = []
  for path in paths:
    notebook, begun = nbformat.read(path, as_version=4), time.monotonic()
    client = nbclient.NotebookClient(
        notebook, timeout=3600, kernel_name='python3', resources={'metadata': {'path': str(out)}})
    try:
      client.execute()
    except nbclient.exceptions.CellExecutionError as error:
      failed.append(path.name)
      print(f'{path.name}: {error}', file=sys.stderr)
    nbformat.write(notebook, out / path.name)
    print(f'{path.name}: {time.monotonic() - begun:.0f} s, see {out / path.name}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
