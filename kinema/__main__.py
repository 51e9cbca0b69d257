"""``python -m kinema`` is the command ``kinema``."""

import sys

from kinema.cli import main

sys.exit(main())
