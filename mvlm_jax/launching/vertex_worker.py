"""Runs `mvlm` in one of the containers of a Vertex AI job on several machines, and tells it which of them it is.

Vertex AI describes the job in the variable CLUSTER_SPEC; the first machine is the pool workerpool0.
"""

import json
import os
import sys
from collections.abc import Sequence

from mvlm_jax.launching.job import PORT


def words(argv: Sequence[str], cluster_spec: str) -> list[str]:
    """The arguments with those that say which process this is."""
    described = json.loads(cluster_spec)
    pools = sorted(name for name in described["cluster"] if name.startswith("workerpool"))
    hosts = [(pool, index) for pool in pools for index in range(len(described["cluster"][pool]))]
    first = described["cluster"][pools[0]][0].partition(":")[0]
    own = hosts.index((described["task"]["type"], int(described["task"]["index"])))
    address = [f"--coordinator_address={first}:{PORT}", f"--num_processes={len(hosts)}", f"--process_id={own}"]
    return [*argv, *address]


if __name__ == "__main__":
    os.execvp("mvlm", ["mvlm", *words(sys.argv[1:], os.environ["CLUSTER_SPEC"])])
