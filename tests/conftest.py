"""Settings of the whole suite."""

import hypothesis

# The same examples in every run, and no deadline: the first call of a jitted function compiles.
hypothesis.settings.register_profile('wmpoe', derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile('wmpoe')
