import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.training import checkpoints
from wmpoe.training import state

OPTIMIZER = state.make_optimizer(learning_rate=1e-2, warmup_steps=2, total_steps=9)


def make_state(step=0):
  params = {"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "low": jnp.ones(2, jnp.bfloat16)}}
  made = state.create(params, OPTIMIZER)
  for _ in range(step):
    updates, opt_state = OPTIMIZER.update(made.params, made.opt_state, made.params)
    made = made.replace(
      step=made.step + 1,
      params=jax.tree.map(jnp.add, made.params, updates),
      opt_state=opt_state,
    )
  return made


def save(workdir, *steps, keep=2, data=None):
  checkpointer = checkpoints.Checkpointer(workdir, keep=keep)
  for step in steps:
    checkpointer.save(make_state(step), data=data or {"next": step}, meta={"note": f"n{step}"})
  checkpointer.close()


def assert_same(a, b):
  def check(x, y):
    assert x.dtype == y.dtype and x.shape == y.shape
    np.testing.assert_array_equal(x, y)

  jax.tree.map(check, a, b)


@pytest.mark.parametrize("data", [{"next": 3, "inner": {"a": [1, 2]}}, b'{"text": 1}'])
def test_restore_gives_back_everything(tmp_path, data):
  save(tmp_path, 3, data=data)
  checkpointer = checkpoints.Checkpointer(tmp_path, keep=2)
  restored, position, meta = checkpointer.restore(make_state())
  checkpointer.close()
  assert_same(restored, make_state(3))
  assert jax.tree.structure(restored) == jax.tree.structure(make_state(3))
  assert position == data
  assert meta == {"note": "n3", "step": 3}


def test_items_are_separate_and_old_checkpoints_go(tmp_path):
  save(tmp_path, 1, 2, 3, keep=2)
  folder = tmp_path / checkpoints.FOLDER
  assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
  items = {p.name for p in (folder / "3").iterdir() if p.is_dir()}
  assert items == {"params", "ema", "optimizer", "data", "meta"}


def test_half_written_checkpoint_is_not_used(tmp_path):
  save(tmp_path, 1, 2)
  half = tmp_path / checkpoints.FOLDER / "3.orbax-checkpoint-tmp"
  (half / "params").mkdir(parents=True)
  assert checkpoints.load_params(tmp_path)[1]["step"] == 2
  assert half.exists()  # It may be the work of a job that is still training.
  checkpointer = checkpoints.Checkpointer(tmp_path, keep=2)
  assert checkpointer.latest_step() == 2
  assert checkpointer.latest_path() == tmp_path / checkpoints.FOLDER / "2"
  # The remains are removed in the background, before the next save at the latest.
  checkpointer.save(make_state(4), data={}, meta={})
  checkpointer.close()
  assert not half.exists()
  assert checkpoints.load_params(tmp_path)[1]["step"] == 4


def test_load_params_needs_no_shapes(tmp_path):
  save(tmp_path, 2, 4)
  made = make_state(4)
  ema, meta = checkpoints.load_params(tmp_path)
  assert_same(ema, made.ema)
  assert meta["note"] == "n4"
  assert_same(checkpoints.load_params(tmp_path, "params")[0], made.params)
  older, meta = checkpoints.load_params(tmp_path, "params", step=2)
  assert_same(older, make_state(2).params)
  assert meta["step"] == 2


def test_load_params_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no trained run: expected the folder"):
    checkpoints.load_params(tmp_path)
  save(tmp_path, 1)
  with pytest.raises(FileNotFoundError, match=r"checkpoint of step 7; complete.*\[1\]"):
    checkpoints.load_params(tmp_path, step=7)
  with pytest.raises(ValueError, match=r"which='average': expected 'ema' or 'params'"):
    checkpoints.load_params(tmp_path, "average")


def test_config_is_written_and_compared(tmp_path):
  config = {"a": {"b": 1, "c": (1, 2)}, "d": None}
  checkpoints.check_config(tmp_path, config)
  assert json.loads((tmp_path / checkpoints.CONFIG).read_text())["a"] == {"b": 1, "c": [1, 2]}
  checkpoints.check_config(tmp_path, config)
  with pytest.raises(ValueError, match=r"a\.b: 1 there, 2 now\n  d: None there, '\(absent\)' now"):
    checkpoints.check_config(tmp_path, {"a": {"b": 2, "c": (1, 2)}})
  # What was refused must not have replaced what is there.
  checkpoints.check_config(tmp_path, config)
  checkpoints.check_config(tmp_path, {**config, "a": {"b": 5}}, may_differ=["a"])
  assert json.loads((tmp_path / checkpoints.CONFIG).read_text())["a"] == {"b": 5}


HOLD = """
import sys
from wmpoe.training import checkpoints
with checkpoints.Lock(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_lock_keeps_a_second_job_out_until_the_first_is_dead(tmp_path):
  path = os.pathsep.join([os.path.dirname(os.path.dirname(os.path.dirname(checkpoints.__file__)))])
  job = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], env={**os.environ, "PYTHONPATH": path},
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert job.stdout.readline() == "held\n"
  with (
    pytest.raises(RuntimeError, match=rf"Another job \(process {job.pid} on .*Wait for it"),
    checkpoints.Lock(tmp_path),
  ):
    pass
  job.kill()
  job.communicate()
  assert (tmp_path / checkpoints.LOCK).exists()
  with checkpoints.Lock(tmp_path):
    assert json.loads((tmp_path / checkpoints.LOCK).read_text())["pid"] == os.getpid()
  assert not (tmp_path / checkpoints.LOCK).exists()


def test_lock_is_exclusive_in_one_process_and_ignores_reused_ids(tmp_path):
  with checkpoints.Lock(tmp_path):
    held = json.loads((tmp_path / checkpoints.LOCK).read_text())
    with pytest.raises(RuntimeError, match="Another job"), checkpoints.Lock(tmp_path):
      pass
    assert (tmp_path / checkpoints.LOCK).exists()
  # A process of the same id, born at another time, is not the job that held the folder.
  for left in (json.dumps({**held, "pid": os.getppid()}), "", '{"pid": 1'):
    (tmp_path / checkpoints.LOCK).write_text(left)
    with checkpoints.Lock(tmp_path):
      pass
  (tmp_path / checkpoints.LOCK).write_text(json.dumps({**held, "host": "elsewhere"}))
  with pytest.raises(RuntimeError, match="on elsewhere.*remove"), checkpoints.Lock(tmp_path):
    pass
