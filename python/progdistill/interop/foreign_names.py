"""Other projects' names of a U-Net's weights, given parameter by parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from progdistill.interop.folders import blaming
from progdistill.interop.stored_tensors import Stored, StoredTensors
from progdistill.interop.weights import shortened, unet_without_memory
from progdistill.nets.config import UNetConfig

_PLACE = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


class Place(NamedTuple):
    """Where a parameter of `nets.unet.UNet` is: its name down_blocks.NUMBER.KIND.INDEX.LEAF in parts."""

    side: str
    """down, mid or up."""
    number: int
    """Of the block on its side, in the order in which they are run; 0 in the middle."""
    kind: str
    """resnets, attentions, downsamplers or upsamplers."""
    index: int
    leaf: str


class Source(NamedTuple):
    """What a parameter is made of: tensors of a foreign file, and how."""

    names: tuple[str, ...]
    make: Callable[..., Stored]


def place_of(name: str) -> Place | None:
    """The parts of a parameter's name, None outside of the blocks."""
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    side, number, kind, index, leaf = match.groups()
    return Place(side, int(number or 0), kind, int(index), leaf)


def replaced_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with its longest known prefix replaced; KeyError if it has none."""
    known = max((prefix for prefix in prefixes if name.startswith(f"{prefix}.")), key=len, default=None)
    if known is None:
        raise KeyError(name)
    return prefixes[known] + name[len(known) :]


def translated(
    config: UNetConfig, stored: StoredTensors, source_of: Callable[[str], Source], where: str, described_by: str
) -> dict[str, Stored]:
    """The tensors of a foreign file by the names of the network of `config`.

    `where` names the file and `described_by` what the configuration comes from in messages. Raises ValueError, with the
    file's own names, for tensors that are missing or left over.
    """
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    with blaming(described_by, f"it does not belong to {where}, or that is damaged"):
        parameters = unet_without_memory(config, shapes).state_dict()
    sources = {name: source_of(name) for name in parameters}
    wanted = {name: None for source in sources.values() for name in source.names}
    complaints = {
        "missing": [name for name in wanted if name not in stored],
        "unexpected": [name for name in stored if name not in wanted],
    }
    listed = [f"{len(names)} {what}: {shortened(names)}" for what, names in complaints.items() if names]
    if listed:
        raise ValueError(
            f"{where} does not fit {described_by}: {'; '.join(listed)}. Use those of one and the same model"
        )
    return {name: source.make(*(stored[each] for each in source.names)) for name, source in sources.items()}
