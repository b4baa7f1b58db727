"""Models as folders that plain diffusers opens: saving, loading, and taking over what others saved."""

from progdistill.interop.baking import baked_guidance, baked_step_count
from progdistill.interop.diffusers_verdict import diffusers_verdict
from progdistill.interop.export_diffusers import ExportedFolder, export_diffusers
from progdistill.interop.guided_diffusion import load_guided_diffusion
from progdistill.interop.load import load
from progdistill.interop.salimans_ho import load_salimans_ho
from progdistill.interop.save import save

__all__ = [
    "ExportedFolder",
    "baked_guidance",
    "baked_step_count",
    "diffusers_verdict",
    "export_diffusers",
    "load",
    "load_guided_diffusion",
    "load_salimans_ho",
    "save",
]
