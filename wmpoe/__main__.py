"""`python -m wmpoe <command>`."""

import sys

from wmpoe import cli

if __name__ == '__main__':
  sys.exit(cli.main(sys.argv))
