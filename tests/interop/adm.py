"""The U-Net of Dhariwal & Nichol 2021 with guided-diffusion's parameter names, written from its description alone.

Only what the loader has to know: 32 groups, eps 1e-5; qkv as one layer, of which the heads take their rows either head
by head (q, k, v of the first, then of the second ...) or all queries first.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, width, out, embedding, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.ModuleDict({"0": nn.GroupNorm(32, width), "2": nn.Conv2d(width, out, 3, padding=1)})
        self.emb_layers = nn.ModuleDict({"1": nn.Linear(embedding, out * (1 + scale_shift))})
        self.out_layers = nn.ModuleDict({"0": nn.GroupNorm(32, out), "3": nn.Conv2d(out, out, 3, padding=1)})
        if width != out:
            self.skip_connection = nn.Conv2d(width, out, 1)

    def forward(self, x, emb):
        h = F.silu(self.in_layers["0"](x))
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = (each.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for each in (x, h))
        h = self.in_layers["2"](h)
        e = self.emb_layers["1"](F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers["0"](h) * (1 + scale) + shift
        else:
            h = self.out_layers["0"](h + e)
        h = self.out_layers["3"](F.silu(h))
        return (self.skip_connection(x) if hasattr(self, "skip_connection") else x) + h


class Attention(nn.Module):
    def __init__(self, width, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = nn.GroupNorm(32, width), nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, emb):
        tokens = x.flatten(2)
        rows, width = self.qkv(self.norm(tokens)), tokens.shape[1]
        size = width // self.heads
        out = torch.empty_like(tokens)
        for head in range(self.heads):
            if self.new_order:
                q, k, v = (rows[:, j * width + head * size :][:, :size] for j in range(3))
            else:
                q, k, v = (rows[:, (3 * head + j) * size :][:, :size] for j in range(3))
            weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(size), dim=-1)
            out[:, head * size : (head + 1) * size] = v @ weight.transpose(1, 2)
        return x + self.proj_out(out).reshape(x.shape)


class Resample(nn.Module):
    def __init__(self, width, up):
        super().__init__()
        self.up = up
        if up:
            self.conv = nn.Conv2d(width, width, 3, padding=1)
        else:
            self.op = nn.Conv2d(width, width, 3, padding=1, stride=2)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2)) if self.up else self.op(x)


class Network(nn.Module):
    def __init__(
        self,
        widths=(32, 64),
        blocks=1,
        attended=(False, True),
        head_dim=32,
        scale_shift=True,
        updown=True,
        new_order=False,
        classes=None,
        out=3,
    ):
        super().__init__()
        self.first, embedding = widths[0], 4 * widths[0]
        self.time_embed = nn.ModuleDict({"0": nn.Linear(widths[0], embedding), "2": nn.Linear(embedding, embedding)})
        if classes:
            self.label_emb = nn.Embedding(classes, embedding)

        def residual(width, out, resample=None):
            return Residual(width, out, embedding, scale_shift, resample)

        def attention(width):
            return Attention(width, width // head_dim if head_dim else 1, new_order)

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, widths[0], 3, padding=1)])])
        width, skips = widths[0], [widths[0]]
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(nn.ModuleList([residual(width, wide)]))
                width = wide
                if attended[level]:
                    self.input_blocks[-1].append(attention(width))
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(
                    nn.ModuleList([residual(width, width, "down") if updown else Resample(width, up=False)])
                )
                skips.append(width)
        self.middle_block = nn.ModuleList([residual(width, width), attention(width), residual(width, width)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for block in range(blocks + 1):
                self.output_blocks.append(nn.ModuleList([residual(width + skips.pop(), widths[level])]))
                width = widths[level]
                if attended[level]:
                    self.output_blocks[-1].append(attention(width))
                if level and block == blocks:
                    self.output_blocks[-1].append(residual(width, width, "up") if updown else Resample(width, up=True))
        self.out = nn.ModuleDict({"0": nn.GroupNorm(32, width), "2": nn.Conv2d(width, out, 3, padding=1)})

    def forward(self, x, times, labels=None):
        half = self.first // 2
        phases = times.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed["2"](F.silu(self.time_embed["0"](torch.cat([phases.cos(), phases.sin()], dim=1))))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        h = self.input_blocks[0][0](x)
        skips = [h]
        for block in self.input_blocks[1:]:
            for layer in block:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, emb)
        return self.out["2"](F.silu(self.out["0"](h)))
