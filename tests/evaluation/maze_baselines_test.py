"""Tests of the models by themselves: which files they may come from, and what becomes of them."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from wmpoe import packaged
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.evaluation import maze_baselines
from wmpoe.experts import history_guidance
from wmpoe.experts import recurrent
from wmpoe.experts import short_term
from wmpoe.networks import lora
from wmpoe.networks import poses

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'memory_maze.py'
NONE = dict.fromkeys(zoo.BASELINES, '')
ENCODER = 'a' * 64


def described(variant):
  spec = importlib.util.spec_from_file_location('maze_config', CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(variant)
  config.model.update(width=16, depth=1, heads=1)
  return common.plain(config) | {'encoder_sha256': ENCODER}


SETTING = described('cpu_forcing')['protocol']
ENV = described('cpu_full')['env']


def save(folder, variant, **changes):
  description = described(variant) | changes
  params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), zoo.shapes(description))
  packaged.save(folder / f'{variant}.npz', params, {
      'config': description, 'data': 'none', 'seed': 0, 'steps': 7, 'train_seconds': 3.5,
      'command': 'a test', 'result': {}, 'licence': 'Apache-2.0'})
  return str(folder / f'{variant}.npz')


def load(files):
  return maze_baselines.load(SETTING | {'baselines': NONE | files}, ENV, ENCODER)


@pytest.fixture(autouse=True)
def nothing_packaged(monkeypatch):
  monkeypatch.setattr(packaged, 'names', list)


def test_what_there_is_becomes_arms_and_the_rest_is_said_to_be_left_out(tmp_path):
  memories, training, left_out = load(
      {'ssm': save(tmp_path, 'cpu_ssm'), 'forcing': save(tmp_path, 'cpu_forcing')})
  assert left_out == ['sliding', 'full', 'absolute']
  assert list(memories) == ['ssm', 'history_guidance_t', 'history_guidance_v']
  assert isinstance(memories['ssm'], recurrent.Recurrent)
  vanilla, temporal = memories['history_guidance_v'], memories['history_guidance_t']
  assert isinstance(vanilla, history_guidance.HistoryGuidance)
  assert (len(vanilla.windows), len(temporal.windows)) == (1, 2)
  assert training['ssm']['steps'] == 7 and training['ssm']['train_seconds'] == 3.5
  assert 'train_flops' not in training['ssm']  # this card does not have it
  assert training['history_guidance_t'] == training['history_guidance_v']

  memories, _, left_out = load(
      {'full': save(tmp_path, 'cpu_full'), 'absolute': save(tmp_path, 'cpu_absolute')})
  assert left_out == ['sliding', 'ssm', 'forcing']
  absolute = memories['spatial_absolute']
  assert isinstance(absolute.model.pose_code, poses.AbsolutePose)
  assert (absolute.baseline, absolute.spec.targets) == ('own', lora.TARGETS)
  assert isinstance(memories['full'], short_term.ShortTerm)
  assert memories['full'].model.context == 200
  assert memories['full'].model.network.pattern.window is None

  memories, _, left_out = load({'sliding': save(tmp_path, 'cpu_short_term')})
  assert left_out == ['full', 'ssm', 'forcing', 'absolute']
  assert memories['sliding'].model.context == 33 and memories['sliding'].baseline == 'base'


def test_a_packaged_one_is_found_by_name(tmp_path, monkeypatch):
  path = save(tmp_path, 'cpu_ssm')
  monkeypatch.setattr(packaged, 'names', lambda: ['memory_maze_ssm'])
  monkeypatch.setattr(packaged, 'find', lambda name: path)
  memories, training, _ = load({})
  assert list(memories) == ['ssm'] and training['ssm']['file'] == 'memory_maze_ssm'
  # Of another autoencoder than the user's: nobody asked for it.
  memories, _, left_out = maze_baselines.load(SETTING | {'baselines': NONE}, ENV, 'b' * 64)
  assert not memories and left_out == list(zoo.BASELINES)


def test_files_that_do_not_fit_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"Unknown baselines \['mamba'\]; expected some of sliding"):
    load({'mamba': ''})
  with pytest.raises(FileNotFoundError, match="'gone.npz' is neither a file nor"):
    load({'ssm': 'gone.npz'})
  path = save(tmp_path, 'cpu_full')
  with pytest.raises(ValueError, match=r'baselines.ssm=.*is of the expert full, expected ssm'):
    load({'ssm': path})
  path = save(tmp_path, 'cpu_full', encoder_sha256='b' * 64)
  with pytest.raises(ValueError, match='is of the autoencoder bbb'):
    load({'full': path})
  path = save(tmp_path, 'cpu_full', env=ENV | {'size': 11})
  with pytest.raises(ValueError, match='is of the environment .*11'):
    load({'full': path})
