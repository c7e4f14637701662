"""The reduction against recorded outputs of the published implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.goldens import golden_folders
from tests.reduction.golden_cases import (
    Case,
    check_internvlu_case,
    check_reduction_case,
    internvlu_cases,
    reduction_cases,
)

FOLDERS = golden_folders()
BAGEL = [
    pytest.param(case, tensors, id=f"{folder.name}-{case['case']:03d}-{case['tag']}")
    for folder in FOLDERS
    for case, tensors in reduction_cases(folder)
]
INTERNVLU = [
    pytest.param(case, tensors, id=f"{folder.name}-{case['case']}")
    for folder in FOLDERS
    for case, tensors in internvlu_cases(folder)
]


@pytest.mark.parametrize(("case", "tensors"), BAGEL)
def test_equals_the_published_reduction_on_bagel(case: Case, tensors: dict[str, Tensor]) -> None:
    check_reduction_case(case, tensors)


@pytest.mark.parametrize(("case", "tensors"), INTERNVLU)
def test_equals_the_published_reduction_on_internvlu(case: Case, tensors: dict[str, Tensor]) -> None:
    check_internvlu_case(case, tensors)


def test_a_named_folder_that_is_missing_or_empty_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv("G2TR_GOLDENS", str(folder))
        with pytest.raises(FileNotFoundError, match="G2TR_GOLDENS"):
            golden_folders()
