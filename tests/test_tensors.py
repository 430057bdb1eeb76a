"""Mixed precision only where a processor has it. What is rounded for shipping is tested with the networks that are."""

from __future__ import annotations

import pytest
import torch

from facetransport.devices import has_bfloat16, mixed_precision

CPU = torch.device("cpu")


def product(wanted: bool) -> torch.dtype:
    with mixed_precision(CPU, wanted):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16"])
def test_a_processor_with_bfloat16_computes_in_it_when_asked(feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: True})
    assert has_bfloat16(CPU)
    assert product(True) == torch.bfloat16 and product(False) == torch.float32


def test_a_processor_without_bfloat16_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "cpu_name": "old"})
    assert not has_bfloat16(CPU) and product(True) == torch.float32


def test_devices_that_are_neither_stay_in_float32() -> None:
    assert not has_bfloat16(torch.device("meta"))
