"""`python -m tinystory`."""

import sys

from tinystory.cli import main

sys.exit(main())
