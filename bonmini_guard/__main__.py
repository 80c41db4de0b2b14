"""``python -m bonmini_guard``: the ``bonmini-guard`` command."""

import sys

from bonmini_guard.cli import main

sys.exit(main())
