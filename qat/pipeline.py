"""The straight line: float model -> trace -> sensitivity -> search -> fine-tune -> integers -> packed files -> report.

Each stage leaves its result in the run folder and is skipped when it is there: running the same command again goes
on where the last one stopped.

    float.ckpt  network.json  sensitivity.json  trials.sqlite  trials.csv
    networks/<name>/  config.json  cost.json  schedule.json  model.ckpt  metrics.csv  packed/  result.json
    summary.json  report.html  plots/
"""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import hwmodel
from hwmodel import Board, CostReport, CostTable, LayerConfig, NetworkConfig, NetworkSpec, Schedule
from qat.config import Config
from qat.convert import QuantNetwork
from qat.data import ImageDataModule, build_data
from qat.deploy import DeployedNetwork, deploy
from qat.errors import RunFolderError, SearchError
from qat.export import export as export_packed
from qat.export import load_packed
from qat.graph import trace
from qat.models import build_network
from qat.normalization import Normalization
from qat.report import ReportData, Result, cost_table, result_table, write_report
from qat.runs import RunFolder
from qat.search.display import SearchDisplay
from qat.search.loop import SearchSettings, run_search
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.sensitivity import SensitivityProfile, gaussian_profile, measure
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from qat.search.store import TrialStore
from qat.search.trial import Fidelity, Target
from qat.tasks import ClassificationTask, Recipe, accuracy, fit, logits_of
from qat.tasks.fit import Machine, read_checkpoint, write_checkpoint
from qat.tasks.quantize import SensitivityProbe, TrialEvaluator, finetune, load_quantized, load_state

logger = logging.getLogger(__name__)

TRIALS = "trials.sqlite"
NETWORKS = "networks"


@dataclass(frozen=True)
class Setup:
    """What every stage starts from.

    Args:
        float_model: Trained float model, in inference mode.
        network: Its graph with shapes.
        data: Fit, validation and test images.
        normalization: Of the images.
        board: The board that costs are estimated for.
        recipe: Of the training in full.
        machine: Devices and precision.
    """

    float_model: nn.Module
    network: NetworkSpec
    data: ImageDataModule
    normalization: Normalization
    board: Board
    recipe: Recipe
    machine: Machine


def train(cfg: Config, run: RunFolder) -> Setup:
    """Trains the float model, or loads the weights that the configuration names; both only once.

    Returns:
        What the later stages start from; top-1 on test images is in `float.json`.

    Raises:
        CheckpointError: Weights are missing, damaged, of other shapes, or could not be written.
        DataError: Images are missing or damaged.
        TraceError: The network cannot be mapped to hardware.
        TrainingError: The loss is not finite, or training was interrupted.
    """
    if cfg.trainer.num_threads:
        torch.set_num_threads(cfg.trainer.num_threads)
    data = build_data(cfg.data, cfg.seed)
    model = build_network(cfg.network, cfg.seed)
    network = trace(model, data.input_shape)
    normalization, recipe, machine = data.normalization, recipe_of(cfg), machine_of(cfg)
    kept = run.path / "float.ckpt"
    if kept.is_file():
        load_state(model, read_checkpoint(kept), kept)
    else:
        if cfg.network.weights:
            path = Path(cfg.network.weights)
            load_state(model, read_checkpoint(path), path)
        else:
            logger.info("training the float model")
            float_recipe = replace(
                recipe, epochs=cfg.trainer.float_epochs, learning_rate=cfg.trainer.float_learning_rate
            )
            fit(ClassificationTask(model, normalization, float_recipe), data, machine, run.path / "float")
        write_checkpoint({"state_dict": model.state_dict()}, kept)
        (run.path / "float" / "last.ckpt").unlink(missing_ok=True)
    model.eval()
    if not (run.path / "float.json").is_file():
        logits, labels = logits_of(model, data.test_dataloader(), normalization)
        run.write_json("float.json", {"test_top1": accuracy(logits, labels), "test_images": len(labels)})
        run.write_json("network.json", network.to_dict())
    return Setup(model, network, data, normalization, cfg.board.to_board(), recipe, machine)


def recipe_of(cfg: Config) -> Recipe:
    """The recipe of training in full."""
    trainer = cfg.trainer
    return Recipe(
        epochs=trainer.epochs,
        learning_rate=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
        warmup_share=trainer.warmup_share,
        distillation_weight=trainer.distillation_weight,
        temperature=trainer.temperature,
        gradient_clip=trainer.gradient_clip,
        freeze_batch_norm_epochs=trainer.freeze_batch_norm_epochs,
        mask_update_share=trainer.mask_update_share,
        mask_update_steps=trainer.mask_update_steps,
    )


def machine_of(cfg: Config) -> Machine:
    """Devices and precision."""
    trainer = cfg.trainer
    return Machine(trainer.accelerator, trainer.devices, trainer.strategy, trainer.precision, trainer.progress_bar)


def search(cfg: Config, run: RunFolder) -> list[Result]:
    """The main job: float model, sensitivity, search, and full training of winners and baselines.

    Returns:
        One row per network trained in full; the integer columns are filled by `verify`.

    Raises:
        QatError: What `train` raises; SearchError if no configuration meets a target or too many trials fail.
        BudgetError: The board is too small for the network.
    """
    space, costs, targets = plan(cfg)
    setup = train(cfg, run)
    recipe = replace(setup.recipe, freeze_batch_norm_epochs=0)
    evaluator = TrialEvaluator(
        setup.float_model, setup.data, setup.normalization, recipe, setup.machine, cfg.search.eval_images or 0
    )
    with TrialStore(run.path / TRIALS) as store:
        found = run_search(
            space=space,
            evaluator=evaluator,
            cost=costs.evaluate,
            targets=targets,
            fidelity=Fidelity("short training", cfg.search.train_steps / len(setup.data.train_dataloader())),
            store=store,
            settings=SearchSettings(
                trials=cfg.search.trials,
                seed=cfg.search.seed,
                max_failure_share=cfg.search.max_failed_share,
                proposer=ProposerSettings(initial_trials=max(2, cfg.search.initial_trials // len(targets))),
            ),
            profile=lambda: _sensitivity(cfg, setup, space),
            context=_context(cfg, recipe),
            observers=[SearchDisplay(space, targets)],
        )
        store.export_csv(run.path / "trials.csv")
    run.write_json("sensitivity.json", found.profile.to_dict())
    missing = [target.name for target in targets if target.name not in found.winners]
    if missing:
        raise SearchError(
            f"no completed trial meets the targets {missing}; raise search.trials (now {cfg.search.trials}), or run "
            "again after removing what made trials fail: trials.csv has the errors"
        )
    chosen = {f"mix_{name}": winner.trial.config for name, winner in found.winners.items()}
    chosen |= {f"uniform_w{bits}": _uniform(cfg, setup.network, bits) for bits in cfg.baselines}
    for name, config in chosen.items():
        _train_in_full(cfg, run, setup, name, config)
    return results(run)


def plan(cfg: Config) -> tuple[SearchSpace, CostTable, list[Target]]:
    """What can be chosen, what it costs, what has to be reached: checked before anything is trained.

    Raises:
        ConfigError: A pattern of the configuration matches no layer, or a setting is out of range.
        TraceError: The network cannot be mapped to hardware.
        BudgetError: The board is too small for the network.
        SearchError: No configuration of the space meets a target.
    """
    network = _untrained(cfg)
    space = SearchSpace.from_network(network, space_settings(cfg, network))
    board = cfg.board.to_board()
    costs = CostTable(network, board, space.choices_by_layer, sum_bit_width=cfg.quant.sum_bit_width)
    targets = targets_of(cfg)
    proposer = Proposer(space, costs.evaluate, gaussian_profile(space))
    for target in targets:
        proposer.check_reachable(target)
    for bits in cfg.baselines:
        hwmodel.schedule(network, _uniform(cfg, network, bits), board)
    return space, costs, targets


def _untrained(cfg: Config) -> NetworkSpec:
    channels, rows, columns = cfg.network.input_shape
    return trace(build_network(cfg.network, cfg.seed), (channels, rows, columns))


def space_settings(cfg: Config, network: NetworkSpec) -> SpaceSettings:
    """What each layer may become."""
    quant, chosen = cfg.quant, cfg.search
    end_bit_width = quant.end_bit_width or quant.act_bit_width
    rule = LayerRule(
        weight_bit_widths=tuple(chosen.weight_bit_widths),
        significant_densities=tuple(chosen.significant_densities),
        binary_densities=tuple(chosen.sparse_densities),
        sparse_densities=tuple(chosen.sparse_densities),
        act_bit_width=quant.act_bit_width,
    )
    layers: dict[str, dict[str, Any]] = {network.weighted[-1].name: {"act_bit_width": end_bit_width}}
    for activations in quant.layers:
        layers.setdefault(activations.pattern, {})["act_bit_width"] = activations.act_bit_width
    for choices in chosen.layers:
        changes = layers.setdefault(choices.pattern, {})
        for name in ("weight_bit_widths", "significant_densities", "sparse_densities"):
            if getattr(choices, name) is not None:
                changes[name] = tuple(getattr(choices, name))
        if choices.sparse_densities is not None:
            changes["binary_densities"] = tuple(choices.sparse_densities)
    return SpaceSettings(rule=rule, first_act_bit_width=end_bit_width, layers=layers, sum_bit_width=quant.sum_bit_width)


def targets_of(cfg: Config) -> list[Target]:
    """One budget per compression to reach, all under the board's block RAM."""
    bram18 = float(cfg.search.bram18 or cfg.board.bram18)
    return [
        Target(f"{value:g}x", {"compression": (value, None), "bram18": (None, bram18)})
        for value in cfg.search.min_compression
    ]


def _context(cfg: Config, recipe: Recipe) -> dict[str, Any]:
    """What a trial's score and cost depend on beside the search's own settings."""
    network = {key: value for key, value in asdict(cfg.network).items() if key != "path"}
    network["weights"] = network["weights"] and Path(network["weights"]).name
    return {
        "network": network,
        "data": {key: value for key, value in asdict(cfg.data).items() if key not in ("root", "download")},
        "board": asdict(cfg.board),
        "recipe": asdict(recipe),
        "precision": cfg.trainer.precision,
        "eval_images": cfg.search.eval_images,
    }


def _uniform(cfg: Config, network: NetworkSpec, bits: int) -> NetworkConfig:
    quant = cfg.quant
    return hwmodel.uniform(
        network, bits, quant.act_bit_width, end_bit_width=quant.end_bit_width, sum_bit_width=quant.sum_bit_width
    )


def _sensitivity(cfg: Config, setup: Setup, space: SearchSpace) -> SensitivityProfile:
    """Measures how much each layer's loss grows at each of its choices."""
    torch.manual_seed(cfg.seed)
    base = _base(space)
    probe = SensitivityProbe(setup.float_model, base, setup.data, setup.normalization, cfg.search.sensitivity_images)
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
    """8 weight bits everywhere, activations as in the space."""
    layers = tuple((name, LayerConfig(8, choices[0].act_bit_width)) for name, choices in space.choices_by_layer.items())
    return NetworkConfig(layers, space.sum_bit_width, space.input_bit_width, space.output_bit_width)


def _train_in_full(cfg: Config, run: RunFolder, setup: Setup, name: str, config: NetworkConfig) -> None:
    """Trains one network and measures it; what is there already is not done again."""
    folder = run.path / NETWORKS / name
    relative = folder.relative_to(run.path)
    if (folder / "result.json").is_file():
        return
    logger.info("training %s in full", name)
    run.write_json(relative / "config.json", config.to_dict())
    schedule = hwmodel.schedule(setup.network, config, setup.board)
    report = hwmodel.estimate(setup.network, config, setup.board, schedule)
    run.write_json(relative / "schedule.json", schedule.to_dict())
    run.write_json(relative / "cost.json", report.to_dict())
    model = finetune(
        setup.float_model, config, setup.data, setup.normalization, setup.recipe, setup.machine, folder, cfg.seed
    )
    logits, labels = logits_of(model, setup.data.test_dataloader(), setup.normalization)
    float_logits, _ = logits_of(setup.float_model, setup.data.test_dataloader(), setup.normalization)
    result = Result(
        name=name,
        kind="mix" if name.startswith("mix") else "uniform",
        images=len(labels),
        float_top1=accuracy(float_logits, labels),
        quantized_top1=accuracy(logits, labels),
        integer_top1=None,
        lost=0,
        won=0,
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


def results(run: RunFolder) -> list[Result]:
    """The networks of a run that were trained in full: mixes first, then uniform ones, smallest first.

    Raises:
        RunFolderError: There is none.
    """
    paths = sorted((run.path / NETWORKS).glob("*/result.json"))
    if not paths:
        raise RunFolderError(f"run folder {run.path} has no trained network; run scripts/search.py first")
    found = [Result.from_dict(json.loads(path.read_text())) for path in paths]
    return sorted(found, key=lambda result: (result.kind, -result.compression))


def export(cfg: Config, run: RunFolder) -> list[Path]:
    """Writes the packed files of every network of a run; what is there already is not written again.

    Returns:
        The packed folders.

    Raises:
        QatError: The run has no trained network, or one cannot be lowered to integers.
    """
    setup = train(cfg, run)
    folders = []
    for result in results(run):
        folder = run.path / NETWORKS / result.name
        if not (folder / "packed").is_dir():
            model = _load(setup, folder)
            schedule = Schedule.from_dict(json.loads((folder / "schedule.json").read_text()))
            export_packed(model, folder / "packed", schedule, setup.normalization, setup.data.class_names)
        folders.append(folder / "packed")
    return folders


def _load(setup: Setup, folder: Path) -> QuantNetwork:
    config = NetworkConfig.from_dict(json.loads((folder / "config.json").read_text()))
    return load_quantized(setup.float_model, config, folder / "model.ckpt")


def verify(cfg: Config, run: RunFolder) -> int:
    """Compares the packed files with the deployed model, code for code, over all test images and all layers.

    Returns:
        Codes that differ, over all networks; 0 is the only acceptable answer.

    Raises:
        QatError: There is nothing to verify, or packed files are damaged.
    """
    setup = train(cfg, run)
    total = 0
    for result in results(run):
        folder = run.path / NETWORKS / result.name
        if not (folder / "packed").is_dir():
            raise RunFolderError(f"{folder} has no packed files; run scripts/export.py first")
        packed = load_packed(folder / "packed")
        deployed: DeployedNetwork = deploy(_load(setup, folder), setup.normalization)
        differing, codes, labels = 0, [], []
        for images, batch_labels in setup.data.test_dataloader():
            ours = deployed.layer_codes(images)
            theirs = packed.layer_codes(images.numpy())
            differing += sum(int((ours[name].numpy() != theirs[name]).sum()) for name in ours)
            codes.append(packed.run(images.numpy()))
            labels.append(batch_labels.numpy())
        hits = np.concatenate(codes).argmax(1) == np.concatenate(labels)
        logits, targets = logits_of(setup.float_model, setup.data.test_dataloader(), setup.normalization)
        float_hits = (logits.argmax(1) == targets).numpy()
        verified = replace(
            result,
            integer_top1=float(hits.mean()),
            lost=int((float_hits & ~hits).sum()),
            won=int((hits & ~float_hits).sum()),
            differing_codes=differing,
        )
        run.write_json(f"{NETWORKS}/{result.name}/result.json", verified.to_dict())
        total += differing
    run.write_json("summary.json", [result.to_dict() for result in results(run)])
    return total


def report(cfg: Config, run: RunFolder) -> Path:
    """Writes `report.html` and `plots/` from what the run folder holds.

    Raises:
        RunFolderError: The run has no trained network.
    """
    found = results(run)
    folders = {result.name: run.path / NETWORKS / result.name for result in found}
    with TrialStore(run.path / TRIALS, read_only=True) as store:
        trials = [trial for trial in store.trials() if trial.is_completed]
    profile = SensitivityProfile.from_dict(run.read_json("sensitivity.json"))
    environment = run.read_json("environment.json")[0]
    data = ReportData(
        title=f"{cfg.network.name} on {cfg.data.name}, {cfg.board.name}",
        board=cfg.board.name,
        bram18_available=cfg.board.bram18,
        results=found,
        trials=[(trial.id, trial.target, trial.cost["compression"], trial.accuracy) for trial in trials],
        costs={
            name: CostReport.from_dict(json.loads((path / "cost.json").read_text())) for name, path in folders.items()
        },
        sensitivity={name: max(row) for name, row in zip(profile.dimensions, profile.loss_increase, strict=True)},
        curves={name: _curve(path / "metrics.csv") for name, path in folders.items()},
        notes=_notes(cfg, found),
        commands=[("this run", " ".join(environment["command"]))],
        environment={
            "date": environment["date"],
            "device": f"{environment['device']}, {environment['threads']} threads",
            "revision": f"{environment['git_revision']}{' with changes' if environment['git_dirty'] else ''}",
            "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version),
        },
    )
    return write_report(data, run.path)


def _curve(path: Path) -> list[tuple[int, float]]:
    """(epoch, validation accuracy) from Lightning's metrics.csv."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val_accuracy")]
    return [(int(row["epoch"]), float(row["val_accuracy"])) for row in rows]


def _notes(cfg: Config, found: list[Result]) -> list[str]:
    """What a reader must know to read the figures right."""
    images = found[0].images
    spread = 100 * (found[0].float_top1 * (1 - found[0].float_top1) / images) ** 0.5
    notes = [
        f"Test accuracy is on {images} images that neither training nor search saw; all networks on the same ones. One "
        f"network's standard error is about {spread:.1f} points: read 'lost / won', the paired comparison with float.",
        "All networks were trained in full with the same recipe, epochs and seed. Compression counts everything that "
        "hardware stores: weights of all layers, indices, scales, biases, shifts; over 32 bits per float weight.",
    ]
    if cfg.network.weights:
        notes.append(
            "The float weights were trained elsewhere and may have seen the images that select configurations here: "
            "validation accuracy, also that of the trials, then reads too high. Only test figures are claims."
        )
    mixes = [result for result in found if result.kind == "mix"]
    for uniform in (result for result in found if result.kind == "uniform"):
        peers = [mix for mix in mixes if mix.stored_bits <= uniform.stored_bits * 1.005]
        for mix in peers:
            gain = 100 * (mix.quantized_top1 - uniform.quantized_top1)
            verdict = "better" if gain > 0 else "not better"
            notes.append(
                f"At equal size or less, {mix.name} ({mix.compression:.2f}x) is {verdict} than {uniform.name} "
                f"({uniform.compression:.2f}x): {gain:+.2f} points."
            )
    return notes


def demo(cfg: Config, run: RunFolder) -> int:
    """The whole job: search, export, verify, report.

    Returns:
        Codes that differ between packed files and deployed model; 0 is the only acceptable answer.
    """
    search(cfg, run)
    export(cfg, run)
    differing = verify(cfg, run)
    report(cfg, run)
    show(run, Console())
    return differing


def cost(cfg: Config) -> None:
    """Prints what uniform configurations of a network cost on a board, layer by layer; trains and writes nothing.

    Raises:
        TraceError: The network cannot be mapped to hardware.
        BudgetError: The board is too small for the network.
    """
    network, board, console = _untrained(cfg), cfg.board.to_board(), Console()
    for bits in cfg.baselines:
        console.print(cost_table(hwmodel.estimate(network, _uniform(cfg, network, bits), board), board))


def show(run: RunFolder, console: Console) -> None:
    """Prints the result table and where things lie."""
    console.print(result_table(results(run), f"{run.path.name}: trained in full, measured on test images"))
    console.print(f"report:       {run.path / 'report.html'}", soft_wrap=True)
    console.print(f"packed files: {run.path / NETWORKS}/<network>/packed", soft_wrap=True)
