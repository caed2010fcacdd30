"""Memory experts, to write episodes into and read denoisers from, and their composition."""
