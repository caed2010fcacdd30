"""Runs commands in this process, on worlds small enough for a test."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from wmpoe import cli
from wmpoe import compositions
from wmpoe import packaged
from wmpoe import zoo
from wmpoe.commands import common

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'cards.py'
_MODEL = {'width': 16, 'depth': 1, 'heads': 1}
_ENV = {'size': 16, 'grid': 2, 'symbols': 4}


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Exit code and what was printed."""

  code: int
  out: str
  err: str


@functools.cache
def _shapes(description):
  return zoo.shapes(json.loads(description))


class Tiny:
  """Flags and files of tiny experts on 16x16 frames of four cards."""

  env = [f'--config.env.{key}={value}' for key, value in _ENV.items()]
  flags = [*env, *(f'--config.model.{key}={value}' for key, value in _MODEL.items()),
           '--config.train.batch_size=2']

  @staticmethod
  def config(variant='base'):
    """The flag that names the run card."""
    return f'--config={CONFIG}:{variant}'

  @staticmethod
  def description(variant='base', *, env=True, **model):
    """What the card of a tiny expert says; `env=False` keeps the full board of 32x32."""
    spec = importlib.util.spec_from_file_location('cards_config', CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.model.update({**_MODEL, **model})
    if env:
      config.env.update(_ENV)
    return common.plain(config)

  @staticmethod
  def params(description, seed=0):
    """Random parameters of it; at its initialisation a DiT is zero at the output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put(rng.normal(size=leaf.shape, scale=0.1).astype(np.float32)),
        _shapes(json.dumps(description)))

  def save(self, path, description, params=None):
    """An expert's file; returns its path."""
    packaged.save(path, self.params(description) if params is None else params, {
        'config': description, 'data': 'none', 'seed': 0, 'steps': 0, 'command': 'a test',
        'result': {}, 'licence': 'Apache-2.0'})
    return path

  def world(self, *memories, env=True):
    """A world of a tiny base and the named memories, of random parameters."""
    described = {
        name: self.description(name, env=env) for name in ('base', *memories)
        if name != 'long_term'}
    written = compositions.CARDS['long_term']
    written = {**written, 'writing': {**written['writing'], 'steps': 2}}
    return zoo.build({name: (self.params(d), d) for name, d in described.items()}, {
        **compositions.CARDS, 'num_steps': 2,
        'long_term': written if 'long_term' in memories else None})


@pytest.fixture
def tiny():
  return Tiny()


@pytest.fixture
def wmpoe(capsys, monkeypatch, tmp_path):
  """Calls `wmpoe(COMMAND, FLAG, ...)` in an empty folder."""
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    capsys.readouterr()
    monkeypatch.setattr(sys, 'argv', ['wmpoe', *map(str, arguments)])
    code = cli.main(sys.argv)
    return Outcome(code, *capsys.readouterr())

  return run
