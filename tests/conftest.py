"""Settings of the whole suite."""

import os

import hypothesis

# Most of the suite's time is compilation; here, and in the processes that tests start, XLA does
# without its costly optimisations. One setting for all: programs compiled differently differ in
# rounding, and tests of bit-identity compare runs of several processes.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

# The same examples in every run, and no deadline: the first call of a jitted function compiles.
hypothesis.settings.register_profile('wmpoe', derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile('wmpoe')
