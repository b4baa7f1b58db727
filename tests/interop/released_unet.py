"""The forward pass of the paper's released U-Net, in numpy and float64, from its description alone.

Arrays are (batch, height, width, channels), kernels (height, width, in, out), parameters named by their path in Flax's
tree. `random_parameters` draws a tree of the right shapes; `forward` reads whatever tree it is given.
"""

import math

import numpy as np

GROUPS, EPS = 32, 1e-6


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, p, name):
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height * width, GROUPS, channels // GROUPS)
    mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + EPS)).reshape(x.shape) * p[f"{name}/scale"] + p[f"{name}/bias"]


def conv(x, p, name, stride=1):
    """3x3 with Flax's padding "SAME": at stride 2 and even sizes one row and column behind, none before."""
    kernel, (_, height, width, _) = p[f"{name}/kernel"], x.shape
    before = 1 if stride == 1 else 0
    x = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    out = 0
    for i in range(3):
        for j in range(3):
            out = out + x[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
    return out + p[f"{name}/bias"]


def dense(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def resampled(x, how):
    batch, height, width, channels = x.shape
    if how == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    if how == "down":
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return x


def residual(x, emb, p, name, resample=None):
    h = resampled(silu(group_norm(x, p, f"{name}/norm1")), resample)
    x = resampled(x, resample)
    h = conv(h, p, f"{name}/conv1")
    scale, shift = np.split(dense(silu(emb), p, f"{name}/temb_proj")[:, None, None], 2, axis=-1)
    h = silu(group_norm(h, p, f"{name}/norm2") * (1 + scale) + shift)
    h = conv(h, p, f"{name}/conv2")
    return h + (dense(x, p, f"{name}/nin_shortcut") if f"{name}/nin_shortcut/kernel" in p else x)


def attention(x, p, name):
    tokens = group_norm(x, p, f"{name}/norm").reshape(len(x), -1, x.shape[-1])
    q, k, v = (
        np.einsum("btc,chd->bhtd", tokens, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"][:, None]
        for part in "qkv"
    )
    score = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
    out = score / score.sum(axis=-1, keepdims=True) @ v
    out = np.einsum("bhtd,hdc->btc", out, p[f"{name}/proj_out/kernel"]) + p[f"{name}/proj_out/bias"]
    return x + out.reshape(x.shape)


def time_embedding(logsnr, channels):
    """inv_cos: the share of the angle, in thousandths; sines, then cosines."""
    share = np.arctan(np.exp(-0.5 * np.clip(logsnr, -20, 20))) / (0.5 * np.pi)
    half = channels // 2
    # Told and multiplied in float32, as in any implementation: phases go up to 1000.
    frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - 1)).astype(np.float32)
    phases = (1000 * share).astype(np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=1).astype(np.float64)


def forward(p, x, logsnr, labels=None, *, levels, blocks, resample=True):
    emb = time_embedding(logsnr, p["conv_in/kernel"].shape[-1])
    emb = dense(silu(dense(emb, p, "dense0")), p, "dense1")
    if labels is not None:
        emb = emb + dense(np.eye(p["class_emb/kernel"].shape[0])[labels], p, "class_emb")
    hs = [conv(x, p, "conv_in")]
    for level in range(levels):
        for block in range(blocks):
            h = residual(hs[-1], emb, p, f"down_{level}.block_{block}")
            if f"down_{level}.attn_{block}/q/kernel" in p:
                h = attention(h, p, f"down_{level}.attn_{block}")
            hs.append(h)
        if level < levels - 1:
            name = f"down_{level}.downsample"
            hs.append(residual(hs[-1], emb, p, name, "down") if resample else conv(hs[-1], p, name, 2))
    h = residual(hs[-1], emb, p, "mid.block_1")
    h = attention(h, p, "mid.attn_1")
    h = residual(h, emb, p, "mid.block_2")
    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            h = residual(np.concatenate([h, hs.pop()], axis=-1), emb, p, f"up_{level}.block_{block}")
            if f"up_{level}.attn_{block}/q/kernel" in p:
                h = attention(h, p, f"up_{level}.attn_{block}")
        if level:
            name = f"up_{level}.upsample"
            h = residual(h, emb, p, name, "up") if resample else conv(resampled(h, "up"), p, name)
    assert not hs
    return conv(silu(group_norm(h, p, "norm_out")), p, "conv_out")


def random_parameters(widths, blocks, attended, heads, *, emb=64, out=3, classes=None, resample=True, seed=0):
    """A parameter tree, flat, float32, no value zero."""
    rng, p = np.random.default_rng(seed), {}

    def layer(name, *kernel, fan_in, bias):
        p[f"{name}/kernel"] = rng.standard_normal(kernel) / math.sqrt(fan_in)
        p[f"{name}/bias"] = 0.1 * rng.standard_normal(bias)

    def norm(name, width):
        p[f"{name}/scale"], p[f"{name}/bias"] = 1 + 0.1 * rng.standard_normal(width), 0.1 * rng.standard_normal(width)

    def add_conv(name, width, wide):
        layer(name, 3, 3, width, wide, fan_in=9 * width, bias=wide)

    def add_residual(name, width, wide):
        norm(f"{name}/norm1", width), norm(f"{name}/norm2", wide)
        add_conv(f"{name}/conv1", width, wide), add_conv(f"{name}/conv2", wide, wide)
        layer(f"{name}/temb_proj", emb, 2 * wide, fan_in=emb, bias=2 * wide)
        if width != wide:
            layer(f"{name}/nin_shortcut", width, wide, fan_in=width, bias=wide)

    def add_attention(name, width):
        norm(f"{name}/norm", width)
        for part in "qkv":
            layer(f"{name}/{part}", width, heads, width // heads, fan_in=width, bias=(heads, width // heads))
        layer(f"{name}/proj_out", heads, width // heads, width, fan_in=width, bias=width)

    def add_resample(name, width):
        (add_residual if resample else add_conv)(name, width, width)

    layer("dense0", widths[0], emb, fan_in=widths[0], bias=emb), layer("dense1", emb, emb, fan_in=emb, bias=emb)
    if classes:
        layer("class_emb", classes, emb, fan_in=1, bias=emb)
    add_conv("conv_in", 3, widths[0])
    skips = [widths[0]]
    for level, wide in enumerate(widths):
        for block in range(blocks):
            add_residual(f"down_{level}.block_{block}", skips[-1], wide)
            if attended[level]:
                add_attention(f"down_{level}.attn_{block}", wide)
            skips.append(wide)
        if level < len(widths) - 1:
            add_resample(f"down_{level}.downsample", wide)
            skips.append(wide)
    width = widths[-1]
    add_residual("mid.block_1", width, width), add_attention("mid.attn_1", width)
    add_residual("mid.block_2", width, width)
    for level in reversed(range(len(widths))):
        for block in range(blocks + 1):
            add_residual(f"up_{level}.block_{block}", width + skips.pop(), widths[level])
            width = widths[level]
            if attended[level]:
                add_attention(f"up_{level}.attn_{block}", width)
        if level:
            add_resample(f"up_{level}.upsample", width)
    norm("norm_out", width), add_conv("conv_out", width, out)
    return {name: value.astype(np.float32) for name, value in p.items()}
