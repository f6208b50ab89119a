"""Search algorithms; importing the package registers every one of them."""

import sys

from stepsearch.core.registry import discover

discover(sys.modules[__name__])
