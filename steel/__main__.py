"""Entry point of `python -m steel`, the same as the `steel` command."""

import sys

from steel.cli import main

sys.exit(main())
