"""Ways of making a teacher sample in few network calls, measured against each other."""

from progdistill.comparison.config import CompareConfig
from progdistill.comparison.report import table_lines
from progdistill.comparison.run import compare

__all__ = ["CompareConfig", "compare", "table_lines"]
