"""Search methods of other libraries, each with its defaults; a library that is not installed is left out.

    pip install optuna==5.0.0 pymoo==0.6.2 ax-platform==1.3.1

into an environment that also holds this project.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec

import numpy as np
from search_methods import Evaluations, Method


def optuna_tpe(run: Evaluations) -> None:
    """Optuna's default sampler, a tree-structured Parzen estimator."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize", "minimize"] if run.is_front else ["maximize"]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.TPESampler(seed=run.seed))
    sizes = run.problem.space.sizes.tolist()
    while not run.done:
        trial = study.ask()
        point = np.array([trial.suggest_int(f"x{i}", 0, size - 1) for i, size in enumerate(sizes)])
        value = run(point)
        study.tell(trial, [value, float(run.bits(run.points[-1][None, :])[0])] if run.is_front else value)


def pymoo_nsga2(run: Evaluations) -> None:
    """Pymoo's NSGA-II on accuracy and stored bits, a population of 20."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    sizes = run.problem.space.sizes

    class Network(Problem):  # type: ignore[misc]
        """Minimises lost accuracy and stored bits."""

        def __init__(self) -> None:
            super().__init__(n_var=len(sizes), n_obj=2, xl=np.zeros(len(sizes)), xu=sizes - 1, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):  # type: ignore[no-untyped-def]
            rows = []
            for point in x:
                if run.done:  # the last population may be larger than what is left
                    rows.append((1.0, np.inf))
                    continue
                value = run(point)
                rows.append((1 - value, float(run.bits(run.points[-1][None, :])[0])))
            out["F"] = np.array(rows)

    algorithm = NSGA2(
        pop_size=20,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=20, vtype=float, repair=RoundingRepair()),
    )
    algorithm.setup(Network(), seed=run.seed, verbose=False)
    while not run.done:
        algorithm.next()


def ax_default(run: Evaluations) -> None:
    """Ax's default generation strategy."""
    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig

    logging.getLogger("ax").setLevel(logging.ERROR)
    client, sizes = Client(random_seed=run.seed), run.problem.space.sizes
    client.configure_experiment(
        parameters=[
            RangeParameterConfig(name=f"x{i}", parameter_type="float", bounds=(0.0, 1.0)) for i in range(len(sizes))
        ]
    )
    client.configure_optimization(objective="accuracy, -bits_per_weight" if run.is_front else "accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while not run.done:
            for number, parameters in client.get_next_trials(max_trials=1).items():
                shares = np.array([parameters[f"x{i}"] for i in range(len(sizes))])
                point = np.minimum((shares * sizes).astype(np.int64), sizes - 1)
                data = {"accuracy": run(point)}
                if run.is_front:
                    data["bits_per_weight"] = float(run.bits(run.points[-1][None, :])[0])
                client.complete_trial(trial_index=number, raw_data=data)


PEERS: dict[str, Method] = {
    name: method
    for name, (package, method) in {
        "Optuna TPE": ("optuna", optuna_tpe),
        "pymoo NSGA-II": ("pymoo", pymoo_nsga2),
        "Ax": ("ax", ax_default),
    }.items()
    if find_spec(package) is not None
}
