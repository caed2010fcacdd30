"""The memory file: what is loaded dreams on bit for bit, and nothing else is loaded."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import small
from tests.session import warped
import wmpoe
from wmpoe import archive
from wmpoe import session
from wmpoe.diffusion import samplers
from wmpoe.experts import composition
from wmpoe.session import memory_file


@pytest.fixture
def path(seen, tmp_path):
  path = tmp_path / 'memory.npz'
  seen.save(path)
  return path


@pytest.mark.parametrize(('name', 'history'), [
    ('m.npz', False), ('m.npz', True), ('m', False), ('m', True)])
def test_what_is_loaded_dreams_on_bit_for_bit(seen, asked, tmp_path, name, history, world):
  begun, _ = seen.fork(4).imagine(*asked)  # in the middle of a dream
  begun.save(tmp_path / name, history=history)
  loaded = session.Session.load(tmp_path / name, world())
  expected, frames = begun.imagine(*asked)
  got, same_frames = loaded.imagine(*asked)
  small.same(same_frames, frames)
  small.same(got.state.recent, expected.state.recent)
  assert got.observed.tolist() == [6, 6] and got.imagined.tolist() == [4, 4]
  assert got.lineage[0] == 'forked as 4' and got.lineage[1].startswith(name)


def test_another_process_dreams_a_memory_of_pictures_on_bit_for_bit(tmp_path):
  opened = session.Session.open(warped.world(), batch=2).observe(warped.observation())
  opened.save(tmp_path / 'm.npz')
  root = pathlib.Path(wmpoe.__file__).parents[1]
  subprocess.run(
      [sys.executable, '-m', 'tests.session.warped', str(tmp_path / 'm.npz'),
       str(tmp_path / 'frames.npy')], cwd=root, check=True, timeout=300)
  frames = warped.dream(opened)
  assert frames.std(axis=(2, 3, 4)).all(), 'pictures, not one colour'
  small.same(np.load(tmp_path / 'frames.npy'), frames)


@pytest.mark.parametrize('name', ['m.npz', 'm'])
def test_with_its_history_writing_goes_on_bit_for_bit(seen, tmp_path, name):
  seen.save(tmp_path / name, history=True)
  loaded = session.Session.load(tmp_path / name, seen)
  small.same(loaded.state, seen.state)
  more = small.observation(2, 6, seed=8)
  small.same(loaded.observe(more).state, seen.observe(more).state)


def test_without_its_history_it_is_read_only_and_says_so(seen, path, tmp_path):
  loaded = session.Session.load(path, seen)
  with pytest.raises(ValueError, match='can be read, not written to. Save with history=True'):
    loaded.observe(small.observation(2, 6))
  with pytest.raises(ValueError, match='loaded without its history and cannot be saved with it'):
    loaded.save(tmp_path / 'again.npz', history=True)
  anew = loaded.reset()
  small.same(anew.observe(small.observation(2, 6)).observed, np.array([6, 6]))
  leaves, _ = memory_file.read(path)
  assert not [name for name in leaves if '/history/' in name or '/opt_state/' in name]
  loaded.save(tmp_path / 'copy.npz')
  again, _ = memory_file.read(tmp_path / 'copy.npz')
  small.same(again, leaves)


def test_the_composition_comes_back(seen, tmp_path, world):
  one = seen.compose(
      'base', 'long_term', weights={'long_term': 0.3}, rule='mean',
      levels={'long_term': composition.Interval(high=-0.5)})
  model = dataclasses.replace(
      one.model, sampler=samplers.Heun(clip_x0=2.0), num_steps=3, grid='pyramid')
  dataclasses.replace(one, model=model).save(tmp_path / 'm.npz')
  got = session.Session.load(tmp_path / 'm.npz', world()).model
  assert list(got.memories) == ['long_term']
  assert got.memories['long_term'].weight == np.float32(0.3)
  for name in ('rule', 'levels', 'sampler', 'num_steps', 'grid', 'chunk', 'with_base'):
    assert getattr(got, name) == getattr(model, name), name


def test_a_rule_without_a_name_is_asked_of_the_model(seen, tmp_path, world):
  rule = composition.WeightedMean((0.5, 0.25, 0.25))
  one = dataclasses.replace(seen, model=dataclasses.replace(seen.model, rule=rule))
  one.save(tmp_path / 'm.npz')
  assert session.Session.load(tmp_path / 'm.npz', one).model.rule == rule
  with pytest.raises(ValueError, match='rule WeightedMean.* has no name to restore it by'):
    session.Session.load(tmp_path / 'm.npz', world())


def test_a_memory_of_another_model_is_refused(seen, path, world, other):
  base, memories = other
  own = seen.model.memories['long_term']
  stronger = own.replace(spec=dataclasses.replace(own.spec, alpha=2 * own.spec.alpha))
  for part, changes in (
      ('base', {'base': base}),
      ('spatial', {'memories': {**seen.model.memories, 'spatial': memories['spatial']}}),
      ('long_term', {'memories': {**seen.model.memories, 'long_term': stronger}}),
      ('long_term', {'memories': {
          n: m for n, m in seen.model.memories.items() if n != 'long_term'}})):
    with pytest.raises(ValueError, match=f'memory of another model. It differs in {part} '):
      session.Session.load(path, world(**changes))
  with pytest.raises(ValueError, match='does not say how to load its model'):
    session.Session.load(path)


def test_damage_and_other_files_are_refused(seen, path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)
  with pytest.raises(ValueError, match='damaged'):
    session.Session.load(path, seen)
  archive.write(path, dataclasses.replace(memory_file.KIND, version=3), {}, {})
  with pytest.raises(ValueError, match='is of format version 3; this wmpoe reads version 2 of mem'):
    session.Session.load(path, seen)
  np.savez(path, x=np.ones(3))
  with pytest.raises(ValueError, match='has no card.json, so it does not hold memories'):
    session.Session.load(path, seen)


def test_leaves_that_do_not_fit_are_named(seen, path):
  leaves, card = memory_file.read(path)
  leaves.pop('memories/long_term/step')
  archive.write(path, memory_file.KIND, card, leaves)
  with pytest.raises(ValueError, match='not fit the model. 1 missing: memories/long_term/step'):
    session.Session.load(path, seen)


def test_a_file_never_changes_because_its_name_is_wrong(seen, tmp_path):
  with pytest.raises(ValueError, match=r'Memories are files named \*.npz'):
    seen.save(tmp_path / 'memory.pkl')
  assert not list(tmp_path.iterdir())


def test_a_fork_of_a_file_needs_no_model(seen, asked, path, tmp_path):
  card = memory_file.fork(path, tmp_path / 'fork.npz', 5)
  assert card['lineage'][-1] == 'forked as 5'
  forked = session.Session.load(tmp_path / 'fork.npz', seen)
  small.same(forked.imagine(*asked)[1], seen.fork(5).imagine(*asked)[1])


def test_one_key_more_or_less_is_noticed(seen, path):
  leaves, card = memory_file.read(path)
  assert jax.random.key_data(seen.key).tolist() == leaves.pop('key').tolist()
  archive.write(path, memory_file.KIND, card, leaves)
  with pytest.raises(ValueError, match='It has no key'):
    session.Session.load(path, seen)
