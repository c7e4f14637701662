"""What token weights cost in attention: every way that this device can add them, against none, in the same run.

A weight is the logarithm of how many tokens a kept one stands for, added to its key's logits. Shapes are BAGEL-7B's (28
heads on 4 of keys and values, width 128): an edit's prefill with half and a tenth of 4,900 visual tokens behind 4,096
of the latent, a denoising step, a decoded token, a question. Ways run in turn; a ratio is the median over rounds of a
way's time over that without weights: CPU time on a CPU, which neighbours cannot stretch, else between device events.

"ours" is what the pack does on this device. FlexAttention is not among the ways: it needs Triton, and compiles a kernel
for every shape.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from g2tr_core.nn import attention as ours
from g2tr_core.nn.attention import KeyValues, attention, widened

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

Way = Callable[[], Tensor]
TOKENS = 4900


class Shape(NamedTuple):
    """A call of attention: its queries are the last rows of the keys."""

    name: str
    queries: int
    keys: int
    causal: bool = False


LATENT = 4098  # with its two marker rows
SHAPES = [
    Shape("prefill, half", 2452, LATENT + 2452),
    Shape("prefill, a tenth", 492, LATENT + 492),
    Shape("step, 8,000 keys", LATENT, 8000),
    Shape("step, 13,000 keys", LATENT, 13000),
    Shape("token, 2,500 keys", 1, 2500, True),
    Shape("token, 13,000 keys", 1, 13000, True),
    Shape("question, 2,500 keys", 30, 2500, True),
    Shape("question, 13,000 keys", 30, 13000, True),
]
HEADS, GROUPS, WIDTH = 28, 4, 128
PAIRS = 2**22  # above this many, a CPU is given one group of heads: a quarter of the work, ratios alike
REFUSED = "refused"


class Call:
    """Random rows of one shape, and every way to attend to them with weights.

    Every way takes and returns the same. The ranges are one, so that none pays for joining them.
    """

    def __init__(self, shape: Shape, groups: int, dtype: torch.dtype, device: torch.device) -> None:
        random = torch.Generator().manual_seed(0)
        self.causal, self.scale = shape.causal, WIDTH**-0.5
        heads = groups * (HEADS // GROUPS)
        self.query = torch.randn(shape.queries, heads, WIDTH, generator=random).to(device, dtype)  # [n, H, D]
        key, value = torch.randn(2, shape.keys, groups, WIDTH, generator=random).to(device, dtype)  # [m, H_kv, D]
        count = torch.randint(1, 20, (shape.keys,), generator=random)
        count[-shape.queries :] = 1  # the block stands for itself; where the weights are makes no way faster
        self.rows = KeyValues(key, value, count.float().log().to(device))
        self.wide = widened(self.query, self.rows)

    def plain(self) -> Tensor:
        """Without weights."""
        return attention(self.query, [self.rows._replace(log_weight=None)], causal=self.causal)

    def ways(self) -> dict[str, Way]:
        """With weights, by name."""
        ways = {
            "ours": lambda: attention(self.query, [self.rows], causal=self.causal),
            "channels": self.channels,
            "channels, kept": lambda: self.through(*self.wide),
            "bias": self.bias,
        }
        if not self.causal:
            ways["bias, written out"] = lambda: self.bias(dense=True)
        if len(self.query) == 1:
            ways["bias, by group"] = self.by_group
        if self.query.is_cuda:
            ways["bias, cuDNN"] = lambda: self.bias(backend=SDPBackend.CUDNN_ATTENTION)
        elif self.query.device.type == "cpu":
            ways["apart"] = self.apart
        return ways

    def channels(self) -> Tensor:
        """In extra channels that are added here; "kept" has them from before, as a KV cache might."""
        return self.through(*widened(self.query, self.rows))

    def through(self, query: Tensor, rows: KeyValues) -> Tensor:
        """Attention of widened rows."""
        out = ours._attention(query, rows, self.causal, self.scale).unflatten(-1, (query.shape[1], -1))
        return out[..., :WIDTH].flatten(-2)

    def bias(self, dense: bool = False, backend: SDPBackend | None = None) -> Tensor:
        """As a bias of stride 0; text of several queries needs one for each of them, written out."""
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in self.rows_of_all())
        size, weights = (len(self.query), k.shape[2]), ours._bias(self.weight, q)
        mask = weights.expand(size)
        if self.causal and size[0] > 1:
            mask = mask.masked_fill(self.unseen(*size), -torch.inf)
        if dense:
            mask = mask.contiguous()
        grouped = q.device.type == "cpu" or backend is not None
        if not grouped:  # the memory-efficient back end knows no groups
            k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, v))
        with sdpa_kernel(backend) if backend is not None else torch.no_grad():
            out = F.scaled_dot_product_attention(q, k, v, mask[None, None], enable_gqa=grouped)
        return out[0].transpose(0, 1).flatten(1)

    def by_group(self) -> Tensor:
        """A single query's heads of a group as queries of one head, with a bias of stride 0."""
        k, v = (x.transpose(0, 1).unsqueeze(0) for x in (self.rows.key, self.rows.value))
        q = self.query.view(1, k.shape[1], -1, WIDTH)
        mask = ours._bias(self.weight, q).expand(1, 1, q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, mask).flatten(1)

    def apart(self) -> Tensor:
        """The prefix with a bias and the block without, joined by the log-sum-exps that the CPU's kernel returns."""
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in self.rows_of_all())
        past = k.shape[2] - len(self.query)
        mask, kernel = ours._bias(self.weight[:past], q), torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        prefix, lse = kernel(q, k[:, :, :past], v[:, :, :past], attn_mask=mask.expand(1, 1, len(self.query), past))
        block, own_lse = kernel(q, k[:, :, past:], v[:, :, past:], is_causal=self.causal)
        share = (lse - own_lse).sigmoid().unsqueeze(-1).to(q.dtype)  # of the prefix
        return torch.lerp(block, prefix, share)[0].transpose(0, 1).flatten(1)

    def rows_of_all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.query, self.rows.key, self.rows.value

    @property
    def weight(self) -> Tensor:
        """[m] fp32."""
        assert self.rows.log_weight is not None
        return self.rows.log_weight

    def unseen(self, new: int, rows: int) -> Tensor:
        """What a causal block behind a prefix does not see, [new, rows]."""
        return torch.ones(new, rows, dtype=torch.bool, device=self.query.device).triu(rows - new + 1)


def measure(call: Call, repeats: int) -> tuple[list[float], dict[str, list[float] | None]]:
    """Times without weights, and of each way as ratios to these; None for a way that this device refuses."""
    device, actions = call.query.device, {"": call.plain, **call.ways()}
    expected, allowed = actions["ours"]().float(), 1e-4 if call.query.dtype is torch.float32 else 0.05
    for name, way in call.ways().items():
        try:
            found = way().float()
        except RuntimeError:  # no kernel for it here
            del actions[name]
        else:
            assert (found - expected).abs().max() < allowed, f"{name} is no attention with these weights"
    calls = 1 if call.query.shape[0] > 64 else 10
    times: dict[str, list[float]] = {name: [] for name in actions}
    for way in actions.values():
        common.lap(way, device, calls)
    for _ in range(repeats):
        for name, way in actions.items():
            times[name].append(common.lap(way, device, calls))
    plain = times.pop("")
    ratios = {name: [x / y for x, y in zip(own, plain, strict=True)] for name, own in times.items()}
    return plain, {name: ratios.get(name) for name in call.ways()}


def lines(shapes: list[Shape], dtype: torch.dtype, options: argparse.Namespace) -> list[list[str]]:
    """The header and one line a shape: milliseconds without weights, then each way's time as a share of them."""
    measured = []
    for shape in shapes:
        large = options.device.type == "cpu" and shape.queries * shape.keys > PAIRS
        call = Call(shape, 1 if large or options.quick else GROUPS, dtype, options.device)
        measured.append((shape, call.query.shape[1], *measure(call, options.repeats)))
    names = list(dict.fromkeys(name for *_, ratios in measured for name in ratios))
    found = [["call", "queries x keys", "heads", "none, ms", *names]]
    for shape, heads, plain, ratios in measured:
        cells = [ratio(ratios[name]) if name in ratios else "" for name in names]
        found.append([shape.name, f"{shape.queries:,} x {shape.keys:,}", f"{heads}", common.spread(plain), *cells])
    return found


def ratio(found: list[float] | None) -> str:
    """Median, or that the device has no kernel."""
    return REFUSED if found is None else f"{median(found):.2f}"


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=common.usable, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16; on a CPU float32")
    parser.add_argument("--threads", type=common.count, default=torch.get_num_threads(), help="CPU threads (all)")
    parser.add_argument("--repeats", type=common.count, default=3, help="rounds to take the median of")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one round: does it run?")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    on_cpu, shapes = options.device.type == "cpu", SHAPES
    dtype = common.dtype_on(options.device) if options.dtype is None else getattr(torch, options.dtype)
    if options.quick:
        options.repeats = 1
        shapes = [Shape(x.name, -(-x.queries // 10), -(-x.keys // 10), x.causal) for x in SHAPES]
    print(common._processor() if on_cpu else torch.get_device_module(options.device).get_device_name(options.device))
    print(f"torch {torch.__version__}, {options.threads} CPU threads, {dtype}\n")
    header, *rest = lines(shapes, dtype, options)
    print(common.table(header, rest))
    print("\nEvery way's time over that without weights (none).")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
