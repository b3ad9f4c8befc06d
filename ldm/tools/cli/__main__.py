"""`python -m ldm.tools.cli`."""

import sys

from ldm.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
