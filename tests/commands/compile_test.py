"""Tests of `python -m wmpoe compile` up to the compiler; programs_test.py goes through it."""

import pathlib
import sys

import jax
import pytest

from wmpoe import cli
from wmpoe.commands import compile as compile_lib

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'memory_maze.py'


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--topology=v5e:3x3'], "Unknown topology 'v5e:3x3'"),
    ([], 'Give a slice, for instance --topology=v5e:4x4'),
    (['--topology=v5e:4x4', '--mesh=rows=2'], '--mesh=rows=2: expected axis=size'),
    (['--topology=v5e:4x4', '--mesh=data=2'], 'data takes the chips that remain'),
    (['--topology=v5e:4x4', '--programs=play'], "Unknown programs ['play']; expected some of"),
    (['--topology=v5e:4x4', '--experts=ltm'], "--experts=['ltm']: expected some of short_term"),
    (['--topology=v5e:4x4'], "pip install -e '.[tpu]'"),
])
def test_bad_input_is_answered(arguments, message, capsys, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  code = cli.main(
      ['wmpoe', 'compile', f'--config={CONFIG}:base', f'--workdir={tmp_path}', *arguments])
  assert code == 2
  assert message in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('flags', 'message'), [
    (['--programs=train'], 'fsdp=8 does not use 4 device(s)'),
    (['--programs=imagine', '--mesh=fsdp=8,expert=3'], 'expert=3 does not use 4 device(s)'),
])
def test_meshes_are_checked_before_anything_is_compiled(flags, message, capsys, monkeypatch):
  monkeypatch.setattr(compile_lib, '_row', None)
  monkeypatch.setattr(compile_lib.topologies, 'devices', lambda where: [*range(4)])
  code = cli.main(['wmpoe', 'compile', f'--config={CONFIG}:base', '--topology=v5e:2x2', *flags])
  assert code == 2
  assert message in capsys.readouterr().err


def test_a_config_without_a_denoiser_is_refused():
  with pytest.raises(ValueError, match=r'expected a variant such as configs/memory_maze.py:base'):
    compile_lib._for_tpu({'env': {}})


def test_auto_is_what_it_is_on_a_tpu_and_a_choice_is_kept():
  chosen = lambda **model: compile_lib._for_tpu({'model': model})['model']
  assert chosen(implementation='auto') == chosen(scan='auto') == {
      'implementation': 'dot_product_attention', 'scan': 'associative', 'scan_layers': True}
  kept = {'implementation': 'splash', 'scan': 'sequential', 'scan_layers': False}
  assert chosen(**kept) == kept


def test_experts_come_from_the_config_file_of_the_base(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['wmpoe', 'compile', f'--config={CONFIG}:base'])
  found = compile_lib._variant(f'{CONFIG}:base', 'spatial', {'env': {'name': "the base's"}})
  assert found['expert'] == 'spatial'
  assert found['env'] == {'name': "the base's"}


def test_the_very_same_program_is_not_compiled_again(monkeypatch, tmp_path):
  compiled = []

  def measure(job, where, lowered):
    compiled.append(lowered.sha256)
    return {
        'program': job.name, 'topology': where.name, 'chips': where.chips, 'mesh': {},
        'batch': job.batch, 'steps': 1, 'state_bytes': 1, 'whole_state_bytes': 1, 'hbm': 2**34,
        'jax': '', 'libtpu': '', 'fits': False, 'needs': 2**35, 'compile_seconds': 1.0}

  monkeypatch.setattr(compile_lib.programs, 'measure', measure)
  monkeypatch.setattr(compile_lib.topologies, 'devices', lambda where: jax.devices()[:1])
  tiny = [f'--config.model.{size}' for size in ('width=16', 'depth=1', 'heads=1')]
  run = lambda *flags: cli.main([
      'wmpoe', 'compile', f'--config={CONFIG}:base', f'--workdir={tmp_path}', '--topology=v5e:2x2',
      '--programs=train', '--mesh=fsdp=1', '--batch=2', *tiny, *flags])
  assert run() == run() == 0
  # How memories are composed is no part of an update; the model is.
  assert run('--config.compose.num_steps=7') == 0
  assert len(compiled) == 1
  assert run('--config.model.width=32') == 0
  assert len({*compiled}) == len(compiled) == len(list(tmp_path.glob('*.json'))) == 2
