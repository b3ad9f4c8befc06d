"""`python -m ldm.tools.cli`."""

import sys

from ldm.tools.cli import main

sys.exit(main())
