"""`python -m probq` runs the command line."""

import sys

from probq.cli import main

if __name__ == "__main__":
    sys.exit(main())
