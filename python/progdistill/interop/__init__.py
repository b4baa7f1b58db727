"""Models as folders that plain diffusers opens: saving, loading, and taking over what diffusers saved."""

from progdistill.interop.export_diffusers import ExportedFolder, export_diffusers
from progdistill.interop.load import load
from progdistill.interop.save import save

__all__ = ["ExportedFolder", "export_diffusers", "load", "save"]
