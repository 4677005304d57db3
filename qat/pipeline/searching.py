"""The search, and full training of what it found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import hwmodel
from hwmodel import CostTables, LayerConfig, NetworkConfig, Schedule
from qat.compose import config_from_dict
from qat.config import Config
from qat.errors import SearchError
from qat.exact import ExactNetwork
from qat.inputs import check_inputs
from qat.pipeline.evaluation import executor_of
from qat.pipeline.planning import bounded_schedule, plan
from qat.pipeline.records import NETWORKS, TRIALS, results
from qat.pipeline.setup import Setup, train
from qat.report import Result
from qat.rounding import Rounding
from qat.runs import RunFolder
from qat.search.display import SearchDisplay
from qat.search.export import export_parquet
from qat.search.front import Front, select_front
from qat.search.loop import EXHAUSTED, SPENT, SearchResult, SearchSettings, search_on
from qat.search.proposer import ProposerSettings
from qat.search.sensitivity import SensitivityProfile, measure
from qat.search.space import SearchSpace
from qat.search.store import TrialStore
from qat.search.tracking import installed_tracking
from qat.search.trial import Fidelity, Target
from qat.tasks import Recipe, evaluate
from qat.tasks.quantize import SensitivityProbe, finetune
from qat.uniform import uniform_of

logger = logging.getLogger(__name__)


def search(cfg: Config, run: RunFolder) -> list[Result]:
    """The main job: float model, sensitivity, search, and full training of winners and baselines.

    Without trials (`search.trials=0`) nothing is searched: the baselines alone are trained.

    Returns:
        One row per network trained in full; the integer columns are filled by `verify`.

    Raises:
        QatError: What `train` raises; SearchError if no configuration meets a target or too many trials fail.
        BudgetError: The board is too small for the network.
    """
    check_inputs(cfg)
    space, costs, targets = plan(cfg)
    setup = train(cfg, run)
    mixes = _searched(cfg, run, setup, space, costs, targets) if cfg.search.trials else {}
    for name, config in mixes.items():
        train_in_full(cfg, run, setup, name, config, bounded_schedule(cfg, setup.network, config))
    for bits in cfg.baselines:
        config = uniform_of(cfg.quant, setup.network, bits)
        schedule = hwmodel.schedule(setup.network, config, setup.board)  # need not keep the bounds
        train_in_full(cfg, run, setup, f"uniform_w{bits}", config, schedule)
    return results(run)


def _searched(
    cfg: Config, run: RunFolder, setup: Setup, space: SearchSpace, costs: CostTables, targets: Sequence[Target]
) -> dict[str, NetworkConfig]:
    """What the search finds, by name; trials that the run folder holds are not made again.

    Raises:
        SearchError: No configuration meets a target, or too many trials fail.
    """
    with TrialStore(run.path / TRIALS) as store, executor_of(cfg, run, setup) as executor:
        run.note_length(cfg)
        complete_fingerprint(store, run)
        try:
            found = search_on(
                executor=executor,
                space=space,
                cost=costs.evaluate,
                targets=targets,
                fidelity=fidelity_of(cfg, setup),
                store=store,
                settings=settings_of(cfg, cfg.search.trials, max(2, cfg.search.initial_trials // len(targets))),
                profile=lambda: _sensitivity(cfg, setup, space),
                context=context_of(cfg, setup.recipe),
                observers=[SearchDisplay(space, targets), *installed_tracking(cfg.name, run.path)],
            )
        finally:  # also what an interrupt or too many failures leave
            store.export_csv(run.path / "trials.csv")
            if find_spec("pyarrow"):
                export_parquet(store.trials(), run.path / "trials.parquet")
            if (profile := store.document("profile")) is not None:
                run.write_json("sensitivity.json", profile)
        exhausted = store.document(EXHAUSTED)
    missing = [target.name for target in targets if target.name not in found.winners]
    if missing:
        advice = f"run the same command again with more search.trials (now {cfg.search.trials})"
        if exhausted:
            what = "everything" if exhausted == SPENT else "everything found"
            advice = f"{what} inside the bounds has been tried: choose other bounds in another run folder"
        raise SearchError(
            f"no completed trial meets the targets {missing}; {advice}, or run the same command again with "
            "search.retry_failed=true after mending what trials.csv has as errors"
        )
    return found_mixes(space, found, targets, cfg.search.front_networks)


def found_mixes(
    space: SearchSpace, found: SearchResult, targets: Sequence[Target], front_networks: int
) -> dict[str, NetworkConfig]:
    """What is trained in full, by name: the winner of each budget, some points of a front (named by their trial)."""
    mixes: dict[str, NetworkConfig] = {}
    for target in targets:
        if isinstance(target, Front):
            winners = select_front(space, found.profile, found.trials, target, front_networks)
            mixes |= {f"mix_trial{winner.trial.id}": winner.trial.config for winner in winners}
        else:
            mixes[f"mix_{target.name}"] = found.winners[target.name].trial.config
    return mixes


def fidelity_of(cfg: Config, setup: Setup) -> Fidelity:
    """What a trial spends."""
    return Fidelity("short training", cfg.search.train_steps / len(setup.data.train_dataloader()))


def settings_of(cfg: Config, trials: int, first_designs: int) -> SearchSettings:
    """How long to search, with so many first designs for each target; where trials do not train none is screened."""
    chosen = cfg.search
    return SearchSettings(
        trials=trials,
        seed=chosen.seed,
        max_failed_share=chosen.max_failed_share,
        screening_share=chosen.screening_share if chosen.train_steps else None,
        retry_failed=chosen.retry_failed,
        proposer=ProposerSettings(initial_trials=first_designs),
    )


def context_of(cfg: Config, recipe: Recipe) -> dict[str, Any]:
    """What a trial's score and cost depend on beside the search's own settings."""
    network = {key: value for key, value in asdict(cfg.network).items() if key != "path"}
    network["weights"] = network["weights"] and Path(network["weights"]).name
    context = {
        "network": network,
        "data": {key: value for key, value in asdict(cfg.data).items() if key not in ("root", "download")},
        "board": asdict(cfg.board),
        "recipe": asdict(recipe),
        "precision": cfg.trainer.precision,
        "eval_images": cfg.search.eval_images,
    }
    return context | _rounding(cfg)


def _rounding(cfg: Config | DictConfig) -> dict[str, str]:
    """How trials that do not train round, unless it is to the nearest code."""
    rounding = Rounding(cfg.quant.one_shot_rounding)
    return {} if cfg.search.train_steps or rounding is Rounding.NEAREST else {"one_shot_rounding": rounding.value}


def completed(fingerprint: Mapping[str, Any], run: RunFolder) -> dict[str, Any]:
    """The fingerprint of a store, of before it said how trials round too: they did as the run's configuration says."""
    stored = config_from_dict(run.config_values(), str(run.path / "config.yaml"))
    return {**fingerprint, "context": _rounding(stored) | fingerprint["context"]}


def complete_fingerprint(store: TrialStore, run: RunFolder) -> None:
    """Brings a store of before up to date, as `completed` says."""
    fingerprint = store.document("fingerprint")
    if fingerprint is not None:
        store.save_document("fingerprint", completed(fingerprint, run))


def _sensitivity(cfg: Config, setup: Setup, space: SearchSpace) -> SensitivityProfile:
    """Measures how much each layer's loss grows at each of its choices."""
    torch.manual_seed(cfg.seed)
    base = _base(space)
    probe = SensitivityProbe(
        setup.float_model,
        base,
        setup.data,
        setup.normalization,
        cfg.search.sensitivity_images,
        setup.objective,
        setup.machine.device,
    )
    with Progress(
        TextColumn("sensitivity"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=not cfg.trainer.progress_bar,
    ) as progress:
        task = progress.add_task("sensitivity")
        return measure(probe, space, base, lambda done, total: progress.update(task, completed=done, total=total))


def _base(space: SearchSpace) -> NetworkConfig:
    """8 weight bits everywhere, activations as wide as the space allows."""
    widest = {name: max(c.act_bit_width for c in choices) for name, choices in space.choices_by_layer.items()}
    layers = tuple((name, LayerConfig(8, width)) for name, width in widest.items())
    return NetworkConfig(layers, space.sum_bit_width, space.input_bit_width, space.output_bit_width)


def train_in_full(
    cfg: Config, run: RunFolder, setup: Setup, name: str, config: NetworkConfig, schedule: Schedule
) -> None:
    """Trains one network and measures it, under its schedule; what is there already is not done again.

    Another network of that name, which a shorter search had found, is kept as `<name>_earlier<number>`.
    """
    folder = run.path / NETWORKS / name
    relative = folder.relative_to(run.path)
    known = relative / "config.json"
    if (run.path / known).is_file() and NetworkConfig.from_dict(run.read_json(known)) != config:
        _set_aside(run, name)
    if (folder / "result.json").is_file():
        return
    logger.info("training %s in full", name)
    run.write_json(relative / "config.json", config.to_dict())
    report = hwmodel.estimate(setup.network, config, setup.board, schedule)
    run.write_json(relative / "schedule.json", schedule.to_dict())
    run.write_json(relative / "cost.json", report.to_dict())
    model = finetune(
        setup.float_model,
        config,
        setup.data,
        setup.normalization,
        setup.recipe,
        setup.machine,
        folder,
        cfg.seed,
        setup.objective,
        cfg.trainer.exact_share,
    )
    trained = ExactNetwork(model, setup.normalization) if cfg.trainer.exact_share else model
    test_images = setup.data.test_dataloader()
    figures = evaluate(trained, test_images, setup.normalization, setup.objective, setup.machine.device)
    float_figures = run.read_json("float.json")
    result = Result(
        name=name,
        kind="mix" if name.startswith("mix") else "uniform",
        images=float_figures["images"],
        score=setup.objective.score,
        float_score=float_figures[setup.objective.score],
        quantized_score=figures[setup.objective.score],
        integer_score=None,
        lost=None,
        won=None,
        differing_codes=None,
        stored_bits=report.stored_bits,
        bits_per_weight=report.bits_per_weight,
        compression=report.compression,
        bound_compression=32 * report.total_weights / report.entropy_bound_bits,
        bram18=report.bram18,
        bram18_available=setup.board.bram18,
        offchip_bits=report.offchip_bits,
        baseline_offchip_bits=report.baseline_offchip_bits,
        fps=report.fps,
    )
    run.write_json(relative / "result.json", result.to_dict())


def _set_aside(run: RunFolder, name: str) -> None:
    folder = run.path / NETWORKS
    number = 1
    while (folder / f"{name}_earlier{number}").exists():
        number += 1
    earlier = f"{name}_earlier{number}"
    (folder / name).rename(folder / earlier)
    logger.warning("%s is another network now; the one before is kept as %s", name, earlier)
