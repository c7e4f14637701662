"""The two halves of a cosine, in fp32 whatever the tokens are stored in, so that neither rounds in bf16 or fp16."""

from __future__ import annotations

import torch
from torch import Tensor

# cuBLAS multiplies bf16 and fp16 exactly and adds in fp32. torch hands out that sum since 2.8, on CUDA builds only, and
# not in fp16 where its sums may be fp16 too (ComfyUI's `--fast fp16_accumulation`).
_FP32_SUMS = torch.version.cuda is not None and "dtype" in torch.ops.aten.mm.overloads()


def comparable(vectors: Tensor) -> Tensor:
    """Rows of any length as rows of the same direction whose squares neither overflow nor vanish.

    Each is multiplied by a power of two, which rounds nothing.

    Args:
        vectors: [R, C]; fp32, bf16 or fp16.

    Returns:
        [R, C] in the same dtype. Zero rows and rows that are not finite stay as they are.
    """
    return _scaled(vectors, _largest(vectors))


def finite_or_zero(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """`comparable` rows, ready for several products, and 0 in place of those that are not finite.

    Args:
        vectors: [R, C]; fp32, bf16 or fp16.

    Returns:
        [R, C] in the dtype that `dot_products` multiplies; and [R] bool, which rows are finite.
    """
    largest = _largest(vectors)  # [R, 1], not finite where any channel is not
    finite = largest.isfinite()
    return multipliable(_scaled(vectors, largest).masked_fill_(~finite, 0.0)), finite[:, 0]


def inverse_norms(vectors: Tensor) -> Tensor:
    """1 / |v| of every row.

    Args:
        vectors: [R, C], any floating dtype.

    Returns:
        [R] fp32. A zero row gives 1e12, finite, so that its cosine with anything is 0.
    """
    norms = torch.linalg.vector_norm(vectors.float(), dim=1)  # [R]
    return norms.clamp_min(1e-12).reciprocal()


def multipliable(vectors: Tensor) -> Tensor:
    """In the dtype that `dot_products` multiplies, so that rows of several products are converted once."""
    return vectors if _sums_in_fp32(vectors) else vectors.float()


def dot_products(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of every row of `left` with every row of `right`.

    Args:
        left: [A, C].
        right: [B, C], same dtype and device.

    Returns:
        [A, B] fp32.
    """
    if _sums_in_fp32(left):
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left.float() @ right.float().T


def _largest(vectors: Tensor) -> Tensor:
    """The largest size of any channel: [R, C] -> [R, 1] fp32."""
    return torch.maximum(vectors.amax(dim=1, keepdim=True), -vectors.amin(dim=1, keepdim=True)).float()


def _scaled(vectors: Tensor, largest: Tensor) -> Tensor:
    """A copy of rows whose largest channels are given, as `comparable` scales them."""
    if vectors.dtype == torch.float16:
        return vectors.clone()  # whose squares fp32 holds
    _, exponent = torch.frexp(largest.nan_to_num(1.0, 1.0))
    scale = torch.ldexp(torch.ones_like(largest), (1 - exponent).clamp(-126, 126))  # [R, 1]; beyond, fp32 has no power
    return vectors * scale.to(vectors.dtype)


def _sums_in_fp32(left: Tensor) -> bool:
    """Whether `mm` takes `left` as it is and gives fp32."""
    if not (_FP32_SUMS and left.is_cuda):
        return False
    fp16 = left.dtype == torch.float16 and not torch.backends.cuda.matmul.allow_fp16_accumulation
    return fp16 or left.dtype == torch.bfloat16
