"""torch's threads in processes that Ray starts."""

import ray
import torch

from rllib_dt.compat import in_ray_task


def use_reserved_cpus() -> None:
    """Gives torch a thread for each CPU that Ray has reserved for this process, and at least one.

    Ray does so itself unless OMP_NUM_THREADS is exported. Where it is, several processes would
    share the cores with more threads than there are: two learners of two threads each on two cores
    trained 0.37 of the windows of one learner (docs/log.md). Does nothing in a process that is not
    one of Ray's workers, or has no CPU reserved.
    """
    if not in_ray_task():
        return
    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    if reserved:
        torch.set_num_threads(max(1, int(reserved)))
