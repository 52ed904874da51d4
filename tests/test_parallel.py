import os

import pytest

from common.distributed import Runtime
from dataset.parallel import map_everywhere


def square_or_die(value: int) -> int:
    if value == 3:
        os._exit(1)
    if value == 30:
        raise ValueError("no square today")
    return value * value


def test_call_that_kills_its_process_does_not_stop_the_others():
    results = map_everywhere(square_or_die, [(i,) for i in range(5)], Runtime(), workers=2, title="test")
    assert [result for i, result in enumerate(results) if i != 3] == [0, 1, 4, 16]
    assert isinstance(results[3], Exception)


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_call_goes_on(workers):
    with pytest.raises(ValueError, match="no square"):
        map_everywhere(square_or_die, [(1,), (30,)], Runtime(), workers, title="test")


def test_no_work_gives_no_results():
    assert map_everywhere(square_or_die, [], Runtime(), workers=None, title="test") == []
