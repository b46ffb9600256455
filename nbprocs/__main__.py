"""``python -m nbprocs``: the command line."""

import sys

from nbprocs.cli import main

if __name__ == "__main__":
    sys.exit(main())
