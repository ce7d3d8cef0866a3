"""``python -m bncpu`` is the console command ``bncpu``."""

import sys

from bncpu.cli import main

sys.exit(main())
