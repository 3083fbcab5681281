"""`python -m steel` does what `steel` does."""

import sys

from steel.cli import main

sys.exit(main())
