"""Forward passes of torchvision's and timm's classifiers in float64 NumPy, by their names.

Written from those libraries' sources, images [B, C, H, W]. A `Weights` draws a tensor when it is
first asked for, so that a pass with an empty one makes a state dict of that library's names and
shapes.
"""

import numpy as np
from scipy.special import erf, softmax


class Weights(dict):
    """A state dict {name: float32 array} that draws what it lacks."""

    def __init__(self):
        super().__init__()
        self._rng = np.random.default_rng(0)

    def get_or_draw(self, name, shape, low=-1.0, high=1.0):
        if name not in self:
            self[name] = self._rng.uniform(low, high, shape).astype(np.float32)
        assert self[name].shape == tuple(shape), name
        return self[name].astype(np.float64)

    def conv(self, name, x, out, side, stride=1, groups=1, bias=False, pad=None):
        shape = (out, x.shape[1] // groups, side, side)
        bound = 2 / np.sqrt(np.prod(shape[1:]))
        w = self.get_or_draw(f"{name}.weight", shape, -bound, bound)
        pad = side // 2 if pad is None else pad
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        seen = np.lib.stride_tricks.sliding_window_view(x, (side, side), (2, 3))
        seen = seen[:, :, ::stride, ::stride]
        seen = seen.reshape(len(x), groups, -1, *seen.shape[2:])
        w = w.reshape(groups, -1, *w.shape[1:])
        y = np.einsum("bgihwkl,goikl->bgohw", seen, w)
        y = y.reshape(len(x), out, *y.shape[3:])
        if bias:
            y = y + self.get_or_draw(f"{name}.bias", (out,))[:, None, None]
        return y

    def batch_norm(self, name, x):
        c = (x.shape[1],)
        mean, var = (
            self.get_or_draw(f"{name}.running_mean", c),
            self.get_or_draw(f"{name}.running_var", c, 0.3, 1.5),
        )
        scale = self.get_or_draw(f"{name}.weight", c, 0.5, 2.0)
        bias = self.get_or_draw(f"{name}.bias", c)
        self[f"{name}.num_batches_tracked"] = np.array(7, np.int64)
        mean, var, scale, bias = (v[:, None, None] for v in (mean, var, scale, bias))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def linear(self, name, x, out):
        bound = 2 / np.sqrt(x.shape[-1])
        w = self.get_or_draw(f"{name}.weight", (out, x.shape[-1]), -bound, bound)
        return x @ w.T + self.get_or_draw(f"{name}.bias", (out,))

    def layer_norm(self, name, x):
        scale = self.get_or_draw(f"{name}.weight", x.shape[-1:])
        bias = self.get_or_draw(f"{name}.bias", x.shape[-1:])
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def max_pool(x):
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))


def resnet(w, x, *, layers, planes, bottleneck, classes, stem=64):
    """torchvision.models.resnet: stages of `layers` blocks of `planes`."""
    x = max_pool(relu(w.batch_norm("bn1", w.conv("conv1", x, stem, 7, 2))))
    for stage, (count, plane) in enumerate(zip(layers, planes, strict=True), 1):
        for i in range(count):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = plane * (4 if bottleneck else 1)
            if bottleneck:
                y = relu(w.batch_norm(f"{name}.bn1", w.conv(f"{name}.conv1", x, plane, 1)))
                y = w.conv(f"{name}.conv2", y, plane, 3, stride)
                y = relu(w.batch_norm(f"{name}.bn2", y))
                y = w.batch_norm(f"{name}.bn3", w.conv(f"{name}.conv3", y, out, 1))
            else:
                y = relu(w.batch_norm(f"{name}.bn1", w.conv(f"{name}.conv1", x, out, 3, stride)))
                y = w.batch_norm(f"{name}.bn2", w.conv(f"{name}.conv2", y, out, 3))
            if stride != 1 or x.shape[1] != out:
                x = w.conv(f"{name}.downsample.0", x, out, 1, stride)
                x = w.batch_norm(f"{name}.downsample.1", x)
            x = relu(x + y)
    return w.linear("fc", x.mean((2, 3)), classes)


def mobilenet_v2(w, x, *, settings, stem, last, classes):
    """torchvision.models.mobilenetv2: settings of rows t, c, n, s."""
    x = relu6(w.batch_norm("features.0.1", w.conv("features.0.0", x, stem, 3, 2)))
    number = 1
    for t, c, n, s in settings:
        for i in range(n):
            stride, inside = s if i == 0 else 1, x.shape[1] * t
            name, k, y = f"features.{number}.conv", 0, x
            if t != 1:
                y = relu6(w.batch_norm(f"{name}.0.1", w.conv(f"{name}.0.0", x, inside, 1)))
                k = 1
            y = w.conv(f"{name}.{k}.0", y, inside, 3, stride, groups=inside)
            y = relu6(w.batch_norm(f"{name}.{k}.1", y))
            y = w.batch_norm(f"{name}.{k + 2}", w.conv(f"{name}.{k + 1}", y, c, 1))
            x = x + y if stride == 1 and x.shape[1] == c else y
            number += 1
    name = f"features.{number}"
    x = relu6(w.batch_norm(f"{name}.1", w.conv(f"{name}.0", x, last, 1)))
    return w.linear("classifier.1", x.mean((2, 3)), classes)


def shufflenet_v2(w, x, *, repeats, channels, classes):
    """torchvision.models.shufflenetv2: channels of the stem, the stages and the last layer."""
    x = max_pool(relu(w.batch_norm("conv1.1", w.conv("conv1.0", x, channels[0], 3, 2))))
    for stage, (count, out) in enumerate(zip(repeats, channels[1:-1], strict=True), 2):
        half = out // 2
        for i in range(count):
            name, stride = f"stage{stage}.{i}", 2 if i == 0 else 1
            if i == 0:
                one, two = f"{name}.branch1", x
                kept = w.conv(f"{one}.0", x, x.shape[1], 3, 2, groups=x.shape[1])
                kept = w.conv(f"{one}.2", w.batch_norm(f"{one}.1", kept), half, 1)
                kept = relu(w.batch_norm(f"{one}.3", kept))
            else:
                kept, two = np.split(x, 2, 1)
            name = f"{name}.branch2"
            y = relu(w.batch_norm(f"{name}.1", w.conv(f"{name}.0", two, half, 1)))
            y = w.batch_norm(f"{name}.4", w.conv(f"{name}.3", y, half, 3, stride, groups=half))
            y = relu(w.batch_norm(f"{name}.6", w.conv(f"{name}.5", y, half, 1)))
            x = np.concatenate([kept, y], 1)
            b, c, *size = x.shape
            x = x.reshape(b, 2, c // 2, *size).swapaxes(1, 2).reshape(b, c, *size)
    x = relu(w.batch_norm("conv5.1", w.conv("conv5.0", x, channels[-1], 1)))
    return w.linear("fc", x.mean((2, 3)), classes)


def patches(w, name, x, patch, width):
    x = w.conv(name, x, width, patch, patch, bias=True, pad=0)
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def vit(w, x, *, patch, width, depth, heads, mlp, classes):
    """timm.models.vision_transformer."""
    x = patches(w, "patch_embed.proj", x, patch, width)
    token = np.broadcast_to(w.get_or_draw("cls_token", (1, 1, width)), (len(x), 1, width))
    x = np.concatenate([token, x], 1)
    x = x + w.get_or_draw("pos_embed", (1, *x.shape[1:]))
    b, n, d = x.shape
    for i in range(depth):
        name = f"blocks.{i}"
        y = w.linear(f"{name}.attn.qkv", w.layer_norm(f"{name}.norm1", x), 3 * d)
        q, k, v = y.reshape(b, n, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        y = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(d // heads), -1) @ v
        x = x + w.linear(f"{name}.attn.proj", y.swapaxes(1, 2).reshape(b, n, d), d)
        y = gelu(w.linear(f"{name}.mlp.fc1", w.layer_norm(f"{name}.norm2", x), mlp))
        x = x + w.linear(f"{name}.mlp.fc2", y, d)
    return w.linear("head", w.layer_norm("norm", x)[:, 0], classes)


def mixer(w, x, *, patch, width, depth, tokens, channels, classes):
    """timm.models.mlp_mixer."""
    x = patches(w, "stem.proj", x, patch, width)
    for i in range(depth):
        name = f"blocks.{i}"
        y = w.layer_norm(f"{name}.norm1", x).swapaxes(1, 2)
        y = gelu(w.linear(f"{name}.mlp_tokens.fc1", y, tokens))
        x = x + w.linear(f"{name}.mlp_tokens.fc2", y, x.shape[1]).swapaxes(1, 2)
        y = gelu(w.linear(f"{name}.mlp_channels.fc1", w.layer_norm(f"{name}.norm2", x), channels))
        x = x + w.linear(f"{name}.mlp_channels.fc2", y, width)
    return w.linear("head", w.layer_norm("norm", x).mean(1), classes)
