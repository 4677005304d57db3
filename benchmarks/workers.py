"""Spreads jobs that leave files over processes; a job whose file is there is not done again."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

Job = TypeVar("Job")


def spread(jobs: Sequence[Job], work: Callable[[Job], None], path_of: Callable[[Job], Path], workers: int) -> None:
    """Does all jobs whose files are missing.

    Args:
        jobs: Picklable descriptions, the longest first.
        work: Does one job and leaves its file; at module level, so that other processes find it.
        path_of: The file of a job.
        workers: Processes; with 1 all is done in this one.
    """
    open_jobs = [job for job in jobs if not path_of(job).is_file()]
    start = time.monotonic()

    def done(number: int, job: Job) -> None:
        print(f"{number} of {len(open_jobs)}, {time.monotonic() - start:.0f} s: {path_of(job)}", flush=True)

    if workers == 1:
        for number, job in enumerate(open_jobs, 1):
            work(job)
            done(number, job)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, job): job for job in open_jobs}
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            done(number, futures[future])
