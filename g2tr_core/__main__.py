"""`python -m g2tr_core` is the `g2tr` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
