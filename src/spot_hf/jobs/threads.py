"""How torch's threads share the cores of a machine with decoding workers, and with whatever else runs there."""

import os


# How often a thread of GNU's OpenMP, which torch's Linux builds use, looks for new work before it sleeps. Its own default, a
# hundred times as many, keeps a core busy with waiting for threads that another process has displaced: on two cores beside one
# busy process, a run with two threads kept 15 % of its speed, with this number 49 %; with the cores to itself it keeps 92 %.
SPIN_COUNT = "3000"


def let_threads_sleep() -> None:
    """To be called before torch is imported: OpenMP reads the environment once. What the user has set there stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def limit_threads() -> None:
    """No more of torch's threads than cores that this process may use, by affinity and by the limits of its container, which
    OpenMP does not know. A number that the user has set stays."""
    import joblib
    import torch

    if "OMP_NUM_THREADS" not in os.environ and joblib.cpu_count() < torch.get_num_threads():
        torch.set_num_threads(joblib.cpu_count())
