"""``python -m tallow``: the ``tallow`` command."""

import sys

from .cli import main

sys.exit(main())
