"""Run the command line: `python -m tinystory` does the same as `tinystory`."""

import sys

from tinystory.cli import main

sys.exit(main())
