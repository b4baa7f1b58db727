"""The U-Net that all models of this package use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.attention import Attention
from progdistill.nets.blocks import DownBlock, MidBlock, UpBlock
from progdistill.nets.config import UNetConfig
from progdistill.nets.embeddings import (
    FixedTime,
    GuidanceEmbedding,
    SinusoidalEmbedding,
    StepCountEmbedding,
    TimestepEmbedding,
)
from progdistill.nets.layers import convolve
from progdistill.nets.pending_sum import first_sum
from progdistill.nets.resnet import ResnetBlock


class UNet(nn.Module):
    """A network with the outputs and parameter names of ``diffusers.UNet2DModel`` of the same configuration.

    Weights are drawn as Salimans & Ho 2022 do (see :func:`initialise`), so a fresh network returns zeros.
    Weights and sample may both be contiguous or both channels_last; the activations stay as they are.
    Vectors may be wider than matrices (`progdistill.nets.bfloat16_twin`).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        if config.time_embedding_type == "learned":
            self.time_proj = nn.Embedding(config.num_train_timesteps, channels[0])
        else:
            self.time_proj = SinusoidalEmbedding(
                channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
            )
        self.time_embedding = TimestepEmbedding(channels[0], config.time_embed_dim)
        self.class_embedding = _class_embedding(config)
        self.guidance_embedding = None
        if config.guidance_embed_dim is not None:
            self.guidance_embedding = GuidanceEmbedding(config.guidance_embed_dim, config.time_embed_dim)
        self.step_embedding = None
        if config.step_embed_dim is not None:
            self.step_embedding = StepCountEmbedding(config.step_embed_dim, config.time_embed_dim)

        skip_channels = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for level, (kind, count) in enumerate(zip(config.down_block_types, channels, strict=True)):
            lowest = level == len(channels) - 1
            self.down_blocks.append(DownBlock(config, kind, skip_channels[-1], count, add_downsample=not lowest))
            skip_channels += [count] * (config.layers_per_block + (not lowest))

        self.mid_block = None if config.mid_block_type is None else MidBlock(config, channels[-1])

        self.up_blocks = nn.ModuleList()
        previous = channels[-1]
        for level, (kind, count) in enumerate(zip(config.up_block_types, reversed(channels), strict=True)):
            highest = level == len(channels) - 1
            skips = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(config, kind, previous, count, skip_channels=skips, add_upsample=not highest))
            previous = count

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        initialise(self)

    @classmethod
    def of_weights(cls, config: UNetConfig, weights: dict[str, Tensor]) -> UNet:
        """The network whose weights these tensors are, by name and as they are, on their device."""
        with torch.device("meta"):
            network = cls(config)
        network.load_state_dict(weights, assign=True)
        return network.to(network.conv_in.weight.device)  # what is no weight is still on the CPU

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights' matrices, to which ``forward`` brings its input."""
        return self.conv_in.weight.dtype

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | FixedTime,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
        step_count: int | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        ``sample``: (B, in_channels, H, W), H and W multiples of ``config.size_divisor``; brought to the
        weights' dtype. ``timestep``: a number, or a tensor of shape (), (1,) or (B,); fractions and negative
        numbers are as good as integers, except with a learned table, whose rows they are. (diffusers
        truncates a Python float, this does not.) Or what ``fixed_time`` has made of one.
        ``class_labels``: (B,) integers below ``num_class_embeds``; (B,) numbers for
        ``class_embed_type="timestep"``; (B, time_embed_dim) for ``"identity"``; None without classes.
        ``guidance``: (B,) or (1,), the weight w of Meng et al. 2023 (the guidance scale less 1) for a network with
        ``guidance_embed_dim``. ``step_count``: how many network calls sampling takes, for a network with
        ``step_embed_dim``; superfluous beside what ``fixed_time`` made, which knows it.

        Returns (B, out_channels, H, W) in the dtype that the weights (or autocast) compute in, or in that of the
        output's bias if it is wider: the sum is then formed in it. Raises
        ValueError for shapes that do not fit and for missing or superfluous labels, and on the CPU for values
        out of range.
        """
        self._check_sample(sample)
        self._check_labels(class_labels, sample.shape[0])
        self._check_guidance(guidance, sample.shape[0])
        if not isinstance(timestep, FixedTime):
            self._check_step_count(step_count)
        x = sample.to(self.dtype)
        if self.config.center_input_sample:
            x = 2 * x - 1
        # Every residual block starts with the SiLU of the embedding: applied once, here.
        fixed = isinstance(timestep, FixedTime) and class_labels is None and guidance is None
        time_act = timestep if fixed else F.silu(self._embed(x, timestep, class_labels, guidance, step_count))

        x = first_sum(self.conv_in, x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, time_act, skips)
        if self.mid_block is not None:
            x = self.mid_block(x, time_act)
        for block in self.up_blocks:
            x = block(x, time_act, skips)
        h = x.normalised(self.conv_norm_out)
        bias = self.conv_out.bias
        if bias.dtype == self.conv_out.weight.dtype:
            return convolve(self.conv_out, h)
        return convolve(self.conv_out, h, bias=False) + bias[:, None, None]

    @torch.no_grad()
    def fixed_time(self, timestep: float, step_count: int | None = None) -> FixedTime:
        """What ``forward`` takes for a time that it will be asked for again: nothing is left to compute of it.

        It holds for the weights as they are now. In a network with classes or guidance the rest depends on these.
        """
        nowhere = self.conv_in.weight.new_empty(1)
        self._check_step_count(step_count)
        time = torch.full((1,), float(timestep), device=nowhere.device)
        embedding = self._embed(nowhere, time, step_count=step_count)
        if self.class_embedding is not None or self.guidance_embedding is not None:
            return FixedTime(embedding=embedding)
        time_act = F.silu(embedding)
        blocks = (module for module in self.modules() if isinstance(module, ResnetBlock))
        return FixedTime((block, block.time_terms(time_act)) for block in blocks)

    def _embed(
        self,
        x: Tensor,
        timestep: Tensor | float | FixedTime,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
        step_count: int | None = None,
    ) -> Tensor:
        """The sum of the embeddings of the time, the step count, the guidance and the class, (B, time_embed_dim)."""
        if isinstance(timestep, FixedTime):
            embedding = timestep.embedding
        else:
            embedding = self.time_embedding(self._project("timestep", _timesteps(timestep, x), x.dtype))
            if step_count is not None:
                embedding = embedding + self.step_embedding(step_count).to(x.dtype)
        if guidance is not None:
            embedding = embedding + self.guidance_embedding(guidance).to(x.dtype)
        if class_labels is None:
            return embedding
        if self.config.class_embed_type == "timestep":
            class_labels = self._project("class_labels", class_labels, x.dtype)
        return embedding + self.class_embedding(class_labels).to(x.dtype)

    def _project(self, name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The sinusoids of ``values`` or their rows of the learned table, (B, block_out_channels[0])."""
        if self.config.time_embedding_type == "learned":
            if values.is_floating_point():
                values = _whole(name, values)
            _check_range(name, values, self.config.num_train_timesteps)
        return self.time_proj(values).to(dtype)

    def _check_sample(self, sample: Tensor) -> None:
        channels = self.config.in_channels
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}; this network takes (B, {channels}, H, W). Reshape "
                "it, or use a network with other in_channels."
            )
        divisor = self.config.size_divisor
        if sample.shape[2] % divisor or sample.shape[3] % divisor:
            raise ValueError(
                f"sample has height and width {tuple(sample.shape[2:])}; this network of "
                f"{len(self.config.block_out_channels)} levels takes multiples of {divisor}. Resize it."
            )

    def _check_labels(self, labels: Tensor | None, batch: int) -> None:
        if self.class_embedding is None:
            if labels is not None:
                raise ValueError(
                    "class_labels given to a network without classes; leave them out, or build it with "
                    "num_class_embeds or class_embed_type."
                )
            return
        identity = self.config.class_embed_type == "identity"
        shape = (batch, self.config.time_embed_dim) if identity else (batch,)
        given = None if labels is None else tuple(labels.shape)
        if given != shape:
            raise ValueError(f"class_labels of shape {given}; this class-conditional network needs {shape}.")
        if isinstance(self.class_embedding, nn.Embedding):
            if labels.is_floating_point():
                raise ValueError(f"class_labels are {labels.dtype}; allowed: integers. Use labels.long().")
            _check_range("class_labels", labels, self.config.num_class_embeds)

    def _check_guidance(self, guidance: Tensor | None, batch: int) -> None:
        if (guidance is None) != (self.guidance_embedding is None):
            raise ValueError(
                "guidance given to a network that takes none; leave it out, or build it with guidance_embed_dim."
                if guidance is not None
                else "no guidance given to a network with guidance_embed_dim; pass one weight for each sample."
            )
        if guidance is not None and guidance.shape not in ((1,), (batch,)):
            raise ValueError(f"guidance has shape {tuple(guidance.shape)}; allowed: (1,) or ({batch},).")

    def _check_step_count(self, count: int | None) -> None:
        if (count is None) != (self.step_embedding is None):
            raise ValueError(
                "step_count given to a network that takes none; leave it out, or build it with step_embed_dim."
                if count is not None
                else "no step_count given to a network with step_embed_dim; pass the number of sampling steps."
            )


def initialise(net: UNet) -> None:
    """Draw the weights as Salimans & Ho 2022 do (their released U-Net).

    Normal weights of variance 1 / fan-in and zero biases; zeros in the last layer of every residual branch
    and of the network, so that each branch starts as the identity and the network's output as zero. The guidance's
    projection and the step count's last layer start at zero too.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # A dense layer over one-hot rows, whose fan-in is their number.
            nn.init.normal_(module.weight, std=module.num_embeddings**-0.5)
    for module in net.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
    nn.init.zeros_(net.conv_out.weight)
    if net.guidance_embedding is not None:
        nn.init.zeros_(net.guidance_embedding.projection.weight)
    if net.step_embedding is not None:
        nn.init.zeros_(net.step_embedding.linear_2.weight)


def _class_embedding(config: UNetConfig) -> nn.Module | None:
    if config.class_embed_type == "timestep":
        return TimestepEmbedding(config.block_out_channels[0], config.time_embed_dim)
    if config.class_embed_type == "identity":
        return nn.Identity()
    if config.num_class_embeds is not None:
        return nn.Embedding(config.num_class_embeds, config.time_embed_dim)
    return None


def _timesteps(timestep: Tensor | float, x: Tensor) -> Tensor:
    """``timestep`` as a tensor of shape (B,) beside ``x``."""
    if not isinstance(timestep, Tensor):
        return torch.full((len(x),), float(timestep), device=x.device)
    if timestep.shape not in ((), (1,), (len(x),)):
        raise ValueError(
            f"timestep has shape {tuple(timestep.shape)}; allowed: a number or a tensor of shape (), (1,) or "
            f"({len(x)},). Give one time for all samples or one for each."
        )
    return timestep.to(x.device).expand(len(x))


def _values_can_be_checked(values: Tensor) -> bool:
    """Only where looking at them costs no synchronisation with a device and breaks no graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and len(values) > 0


def _whole(name: str, values: Tensor) -> Tensor:
    """Rows of a learned table from numbers that are whole but for the rounding of where they came from."""
    rows = values.round()
    if _values_can_be_checked(values) and (rows - values).abs().max() > 1e-3:
        raise ValueError(f"{name}={values.tolist()}; allowed: whole numbers, the rows of the learned table.")
    return rows.long()


def _check_range(name: str, indices: Tensor, count: int) -> None:
    """Refuse indices outside 0 .. count - 1."""
    if not _values_can_be_checked(indices):
        return
    low, high = (int(value) for value in indices.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{name} in {low} .. {high}; allowed: 0 .. {count - 1}. They are counted from 0.")
