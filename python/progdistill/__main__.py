"""`python -m progdistill`, and with torchrun `torchrun ... -m progdistill`."""

import sys

from progdistill.cli import main

sys.exit(main())
