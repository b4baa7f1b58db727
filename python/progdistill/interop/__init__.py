"""Models as folders that plain diffusers opens: saving, loading, and taking over what others saved."""

from progdistill.interop.load import load
from progdistill.interop.save import save

__all__ = ["load", "save"]
