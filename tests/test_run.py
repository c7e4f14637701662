"""Results that are no numbers are errors, infinite ones too: an overflow ends in infinity before anything is NaN."""

from __future__ import annotations

import math

import pytest
import torch

from g2tr_core.errors import G2TRError
from g2tr_core.run import FiniteWatch, check_finite

BROKEN = (math.nan, math.inf, -math.inf)
LARGEST = torch.tensor([torch.finfo(torch.float16).max, -1.0, 0.0]).half()


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize(("dtype", "fix"), [(torch.float16, "Choose bf16"), (torch.float32, "weights are damaged")])
def test_one_value_that_is_no_number_is_an_error(value: float, dtype: torch.dtype, fix: str) -> None:
    check_finite(LARGEST, "picture", dtype)
    with pytest.raises(G2TRError, match="the picture came out as not-a-number in float") as caught:
        check_finite(torch.tensor([1.0, value]), "picture", dtype)
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize("value", BROKEN)
def test_a_loop_is_told_a_step_later_and_at_its_end(value: float) -> None:
    watch, broken = FiniteWatch("latent", torch.float16), torch.tensor([value, 1.0])
    watch.finish()
    watch.look(LARGEST, 1)
    watch.look(broken, 2)
    with pytest.raises(G2TRError, match="not-a-number in float16 at step 2"):
        watch.look(LARGEST, 3)
    last = FiniteWatch("latent", torch.float16)
    last.look(broken, 4)
    with pytest.raises(G2TRError, match="at step 4"):
        last.finish()
