"""Losses between maps [B, H, W, C]: where a network looks, and how its channels go together.

One value an example. Nothing is stopped: the objective stops the teacher.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks, _geometry


def pooled_to_smaller(
    a: Float[Array, "B H W C"], b: Float[Array, "B G U D"]
) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w D"]]:
    """Both maps average-pooled to the smaller height and width of the two, f32.

    Bin i of k goes from floor(i H / k) to ceil((i + 1) H / k), as in adaptive pooling of PyTorch:
    bins overlap where k does not divide H.
    """
    _geometry.is_map(a=a, b=b)
    return _geometry.to_smaller(a.astype(jnp.float32), b.astype(jnp.float32))


def attention_map(features: Float[Array, "B H W C"], *, power: int = 2) -> Float[Array, "B N"]:
    """mean_c f^power at every place, as a vector of length 1: [B, H, W, C] -> f32 [B, H W].

    For an even power neither the sign, nor the order of channels, nor a positive scale counts. A
    map of zeros stays 0, with gradient 0.
    Source: Zagoruyko and Komodakis 2017 (AT), arXiv 1612.03928, section 3.1; power 2.
    """
    _geometry.is_map(features=features)
    _checks.positive("power", power)
    energy = (features.astype(jnp.float32) ** power).mean(-1)
    return _geometry.normalised(energy.reshape(energy.shape[0], -1))


def attention(
    student: Float[Array, "B H W C"], teacher: Float[Array, "B G U D"], *, power: int = 2
) -> Float[Array, " B"]:
    """Attention transfer as coded: the mean over places of (a_s - a_t)^2, a as `attention_map`.

    Channels may differ; the larger map is average-pooled to the smaller one's places. The usual
    weight of 1000 for each stage belongs to this form. f32 [B].
    Source: as `attention_map`; the form is that of the released code, which is the square of the
    paper's equation 2 over the number of places.
    """
    a, b = _attention_maps(student, teacher, power)
    return jnp.square(a - b).mean(-1)


def attention_distance(
    student: Float[Array, "B H W C"], teacher: Float[Array, "B G U D"], *, power: int = 2
) -> Float[Array, " B"]:
    """Attention transfer as written: ||a_s - a_t||_2, a as `attention_map`; f32 [B].

    The gradient is 0 where the two maps are the same. Source: as `attention`, equation 2.
    """
    a, b = _attention_maps(student, teacher, power)
    return _geometry.norm(a - b)


def _attention_maps(student, teacher, power: int):
    _geometry.is_map(student=student, teacher=teacher)
    _geometry.same_examples(student, teacher)
    a, b = pooled_to_smaller(student, teacher)
    return attention_map(a, power=power), attention_map(b, power=power)


def flow(
    student_first: Float[Array, "B H W C"],
    student_second: Float[Array, "B G U D"],
    teacher_first: Float[Array, "B I V C"],
    teacher_second: Float[Array, "B J X D"],
) -> Float[Array, " B"]:
    """FSP: sum_d ||M_s[:, d] - M_t[:, d]||_2, M[c, d] = mean over places of first_c second_d.

    Two layers of each network, with as many channels as the other's; of the two the larger map is
    max-pooled to the smaller. f32 [B]; the gradient is 0 where a column is the same. A norm over
    one axis, not the squared Frobenius norm of the paper's equation 2: as in torchdistill.
    Source: Yim et al. 2017 (FSP), CVPR.
    """

    def matrix(first: jax.Array, second: jax.Array) -> jax.Array:
        _geometry.is_map(first=first, second=second)
        a, b = _geometry.to_smaller(first.astype(jnp.float32), second.astype(jnp.float32), jnp.max)
        return jnp.einsum("bhwc,bhwd->bcd", a, b) / (a.shape[1] * a.shape[2])

    ours, theirs = matrix(student_first, student_second), matrix(teacher_first, teacher_second)
    _checks.same_shape(student=ours, teacher=theirs)
    return _geometry.norm(ours - theirs, axis=1).sum(-1)


def affinity(
    student: Float[Array, "B H W C"], teacher: Float[Array, "B H W C"]
) -> Float[Array, " B"]:
    """sum_c ||f_c f_c^T - g_c g_c^T||_F / (H W), f_c and g_c a channel's places at length 1.

    f32 [B]. Each norm is sqrt(2) |sin| of the angle between the two, so that no [H W, H W] matrix
    is made; the gradient is 0 where they agree. A channel of zeros stays 0.
    Source: He et al. 2019, CVPR (affinity distillation), by torchdistill.
    """
    _checks.same_shape(student=student, teacher=teacher)
    _geometry.is_map(student=student, teacher=teacher)
    f, g = (
        _geometry.normalised(x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1]), axis=1)
        for x in (student, teacher)
    )
    # |f f^T - g g^T|^2 = 2 - 2 <f, g>^2, without its cancellation near 0.
    sine = _geometry.norm(g - f * (f * g).sum(1, keepdims=True), axis=1)
    lengths = _geometry.norm(f, axis=1), _geometry.norm(g, axis=1)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    return jnp.where(both, 2**0.5 * sine, lengths[0] + lengths[1]).sum(-1) / f.shape[1]


def channel_similarity(
    student: Float[Array, "B H W C"], teacher: Float[Array, "B G U C"]
) -> Float[Array, " B"]:
    """ICKD: (1 / C) sum_cd (E^s_cd - E^t_cd)^2, the rows of E = F F^T [C, C] at length 1: f32 [B].

    The two maps may differ in size. The released loss divides by B once more than the mean over
    examples does. Source: Liu et al. 2021 (ICKD), ICCV, by released code.
    """
    _geometry.is_map(student=student, teacher=teacher)

    def relations(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return _geometry.normalised(jnp.einsum("bhwc,bhwd->bcd", x, x))

    ours, theirs = relations(student), relations(teacher)
    _checks.same_shape(student=ours, teacher=theirs)
    return jnp.square(ours - theirs).sum((1, 2)) / ours.shape[-1]


def hierarchical_context(
    student: Float[Array, "B H W C"],
    teacher: Float[Array, "B H W C"],
    *,
    sizes: tuple[int, ...] = (4, 2, 1),
) -> Float[Array, " B"]:
    """(mse + sum_k 2^-k mse of both average-pooled to sizes[k]) / (1 + sum_k 2^-k): f32 [B].

    mse: the mean over an example's elements of the squared difference. Only sizes below H are used
    and count: with H = 4 the size 2 has 1/2 and the size 1 has 1/4.
    Source: Chen et al. 2021 (knowledge review), CVPR, arXiv 2104.09044, by released code.
    """
    _checks.same_shape(student=student, teacher=teacher)
    _geometry.is_map(student=student, teacher=teacher)
    # Pooling is linear: that of the difference is the difference of the two.
    error = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    total = jnp.square(error).mean((1, 2, 3))
    weight = whole = 1.0
    for size in (k for k in sizes if k < error.shape[1]):
        weight /= 2
        whole += weight
        total += weight * jnp.square(_geometry.pool(error, (size, size))).mean((1, 2, 3))
    return total / whole
