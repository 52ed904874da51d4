"""Several processes of one group, forked from that of the test, so that nothing is imported again."""

import os
import socket

from forked import FORK, own_objects_kept

from common.distributed import Runtime


def run_ranks(function, world_size):
    """`function(runtime)` in `world_size` processes; returns their exit statuses, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                       "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        with Runtime.start() as runtime:
            function(runtime)

    group = [FORK.Process(target=work, args=(rank,)) for rank in range(world_size)]
    with own_objects_kept():
        for process in group:
            process.start()
    for process in group:
        process.join()
    return [process.exitcode for process in group]
