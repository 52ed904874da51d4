"""What is asked of the processor: a fault that kills a child is stepped around, a sound one is used."""

import os
import signal
from pathlib import Path

import pytest
import torch

from common.hardware import avoid_broken_amx, free_memory, own_cores


@pytest.mark.parametrize(("signal_number", "wanted"), [(signal.SIGILL, "AVX512_CORE_FP16"), (None, None)])
def test_amx_is_left_alone_where_it_kills(monkeypatch, signal_number, wanted):
    if signal_number:
        monkeypatch.setattr(torch, "ones", lambda *_, **__: os.kill(os.getpid(), signal_number))
    else:
        monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(2, 2))
    monkeypatch.setattr(Path, "read_text", lambda path: "flags: avx2 amx_tile")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")  # put back at the end, whatever it was
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    avoid_broken_amx.__wrapped__()
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == wanted


def test_users_choice_of_instructions_stays(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("nothing to try"))
    avoid_broken_amx.__wrapped__()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_free_memory_is_that_of_this_machine():
    assert 1 << 20 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    alone = own_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert alone >= 1 and own_cores() == 1
