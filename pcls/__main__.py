"""`python -m pcls`."""

import sys

from pcls.cli import main

sys.exit(main())
