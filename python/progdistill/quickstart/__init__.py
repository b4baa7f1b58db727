"""The main job on real images in one call."""

from progdistill.quickstart.config import QuickstartConfig
from progdistill.quickstart.run import quickstart

__all__ = ["QuickstartConfig", "quickstart"]
