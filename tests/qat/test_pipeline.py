"""The whole line on a few digits: search, train, export, verify, report; resuming."""

from __future__ import annotations

import html
import json
import pickle
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hwmodel import NetworkConfig
from qat import pipeline
from qat.compose import compose_config
from qat.config import Config, ExecutorSettings
from qat.deployment import DeployedNetwork
from qat.errors import ConfigError, PackedFormatError, RunFolderError, SearchError
from qat.pipeline.evaluation import executor_of
from qat.pipeline.planning import plan
from qat.pipeline.reporting import _notes
from qat.pipeline.retargeting import retarget_run
from qat.pipeline.watching import status
from qat.report import Result
from qat.runs import RunFolder
from qat.search.loop import EXHAUSTED, SearchResult
from qat.search.pool import ProcessPool
from qat.search.retarget import RetargetedFront
from qat.search.sensitivity import SensitivityProfile
from qat.search.store import TrialStore
from qat.search.trial import Screening, Trial
from tests.qat.small_run import small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunFolder]:
    """A run that went through every stage."""
    config = small_config(tmp_path_factory.mktemp("runs") / "small")
    run = RunFolder.create(config)
    assert pipeline.demo(config, run) == 0
    return config, run


def test_the_run_folder_holds_everything(finished: tuple[Config, RunFolder]) -> None:
    _, run = finished
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    for name in (
        "config.yaml",
        "environment.json",
        "float.ckpt",
        "float.json",
        "network.json",
        "sensitivity.json",
        "trials.sqlite",
        "trials.csv",
        *(["trials.parquet"] if find_spec("pyarrow") else []),
        "summary.csv",
        "summary.json",
        "summary.md",
        "report.html",
        "plots/front.png",
        "networks/mix_16x/config.json",
        "networks/mix_16x/cost.json",
        "networks/mix_16x/schedule.json",
        "networks/mix_16x/metrics.csv",
        "networks/mix_16x/model.ckpt",
        "networks/mix_16x/packed/manifest.json",
        "networks/mix_16x/packed/weights.bin",
        "networks/uniform_w2/result.json",
    ):
        assert name in names, name


def test_integers_are_what_was_trained(finished: tuple[Config, RunFolder]) -> None:
    _, run = finished
    results = [Result.from_dict(row) for row in json.loads((run.path / "summary.json").read_text())]
    assert [result.name for result in results] == ["mix_16x", "uniform_w2"]
    for result in results:
        assert result.differing_codes == 0
        assert result.integer_score is not None
        assert result.integer_score == result.quantized_score  # the last steps were trained with the integers
        assert result.lost is not None
        assert result.won is not None
        hits = round(result.float_score * result.images) - result.lost + result.won
        assert hits == round(result.integer_score * result.images)
    assert results[0].compression >= 16


def test_trials_are_screened_and_the_report_says_what_that_saved_and_how_it_was_called(
    finished: tuple[Config, RunFolder], tmp_path: Path
) -> None:
    _, run = finished
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    with TrialStore(moved / "trials.sqlite") as store:
        assert all(trial.screening == Screening(0.0, trial.screening.least) for trial in store.trials())
        assert all(0 <= trial.screening_accuracy <= 1 for trial in store.trials())
        store.stop(store.trials()[-1], {"screening_accuracy": 0.1})
    (environment,) = json.loads((moved / "environment.json").read_text())[:1]
    environment["command"] = ["scripts/search.py", "search.min_compression=[8.0, 12.0]"]
    (moved / "environment.json").write_text(json.dumps([environment]))
    (moved / "sensitivity.json").unlink()  # as a search that was killed leaves the folder
    for config in (small_config(moved), small_config(moved, "search.trials=0")):
        (moved / "report.html").unlink()
        pipeline.report(config, RunFolder.open(moved))
        page = (moved / "report.html").read_text()
        assert html.escape("scripts/search.py 'search.min_compression=[8.0, 12.0]'") in page
        assert "1 of 4 trials were stopped early, which saved 25 % of the trials" in page


def test_packed_size_is_what_the_cost_model_predicted(finished: tuple[Config, RunFolder]) -> None:
    from qat.export import load_packed

    _, run = finished
    for result in pipeline.results(run):
        packed = load_packed(run.path / "networks" / result.name / "packed")
        weights_and_scales = packed.stored_bits - packed.stored_bits_by_stream["input_codes"]
        assert abs(weights_and_scales - result.stored_bits) <= 0.02 * result.stored_bits + 8 * 1024


def test_running_again_trains_nothing_again(finished: tuple[Config, RunFolder]) -> None:
    config, run = finished
    files = [*run.path.rglob("*.ckpt"), *run.path.rglob("packed/weights.bin")]
    before = {path: path.stat().st_mtime_ns for path in files}
    results = pipeline.search(config, RunFolder.create(config))
    pipeline.export(config, run)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert [result.name for result in results] == ["mix_16x", "uniform_w2"]


@pytest.mark.slow
def test_trials_in_other_processes_score_the_same(finished: tuple[Config, RunFolder], tmp_path: Path) -> None:
    """First designs do not depend on the order in which trials end."""
    _, run = finished
    overrides = ("search.executor.kind=processes", "search.executor.workers=2", "search.trials=2", "baselines=[]")
    config = small_config(tmp_path / "apart", *overrides)
    apart = RunFolder.create(config)
    shutil.copy(run.path / "float.ckpt", apart.path)
    pipeline.search(config, apart)
    scores = []
    for folder in (run.path, apart.path):
        with TrialStore(folder / "trials.sqlite", read_only=True) as store:
            scores.append([trial.accuracy for trial in store.trials()[:2]])
    assert scores[0] == scores[1]


def test_a_longer_search_goes_on_and_keeps_the_networks_of_the_shorter_one(
    finished: tuple[Config, RunFolder], tmp_path: Path
) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(finished[1].path, folder)
    config = small_config(folder, "search.trials=5")
    run = RunFolder.create(config)
    kept = json.loads((folder / "networks" / "mix_16x" / "config.json").read_text())
    with TrialStore(folder / "trials.sqlite") as store:  # what won turns out to be bad
        (won,) = (trial for trial in store.trials() if trial.config == NetworkConfig.from_dict(kept))
        store.complete(won, {**won.metrics, "accuracy": 0.01})
        before = store.trials()
    with run.in_use():
        names = [result.name for result in pipeline.search(config, run)]
    assert sorted(names) == ["mix_16x", "mix_16x_earlier1", "uniform_w2"]
    with TrialStore(folder / "trials.sqlite", read_only=True) as store:
        assert store.trials()[:4] == before and len(store.trials()) == 5
    assert json.loads((folder / "networks" / "mix_16x_earlier1" / "config.json").read_text()) == kept
    assert json.loads((folder / "networks" / "mix_16x" / "config.json").read_text()) != kept
    assert run.config_values()["search"]["trials"] == 5
    pipeline.search(small_config(folder, "search.trials=0"), run)
    pipeline.export(config, RunFolder.reopen(small_config(folder, "search.trials=20")))
    assert run.config_values()["search"]["trials"] == 5
    assert pipeline.verify(config, run) == 0


def test_a_network_is_named_by_its_folder(finished: tuple[Config, RunFolder], tmp_path: Path) -> None:
    """Also where a command was killed while it set the network aside."""
    shutil.copytree(finished[1].path, tmp_path / "aside")
    run = RunFolder.open(tmp_path / "aside")
    known = "networks/mix_16x/result.json"
    run.write_json(known, {**run.read_json(known), "name": "mix_16x_earlier1"})
    assert [result.name for result in pipeline.results(run)] == ["mix_16x", "uniform_w2"]


def test_an_interrupted_search_leaves_its_sensitivities(
    finished: tuple[Config, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**arguments: object) -> SearchResult:
        raise KeyboardInterrupt

    monkeypatch.setattr("qat.pipeline.searching.search_on", interrupted)
    folder = tmp_path / "interrupted"
    shutil.copytree(finished[1].path, folder)
    before = json.loads((folder / "sensitivity.json").read_text())
    (folder / "sensitivity.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        pipeline.search(small_config(folder), RunFolder.open(folder))
    assert json.loads((folder / "sensitivity.json").read_text()) == before


@pytest.mark.parametrize(
    ("is_exhausted", "advice"),
    [
        (False, r"with more search\.trials \(now 4\), or run the same command again with search\.retry_failed=true"),
        (True, r"everything found inside the bounds has been tried: choose other bounds in another run folder, or run"),
    ],
    ids=["trials left", "exhausted"],
)
def test_what_helps_a_search_without_winners(
    is_exhausted: bool,
    advice: str,
    finished: tuple[Config, RunFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def search_on(*, store: TrialStore, **arguments: object) -> SearchResult:
        store.save_document(EXHAUSTED, is_exhausted)
        return SearchResult(store.trials(), {}, SensitivityProfile.from_dict(store.document("profile") or {}))

    monkeypatch.setattr("qat.pipeline.searching.search_on", search_on)
    folder = tmp_path / "copy"
    shutil.copytree(finished[1].path, folder)
    with pytest.raises(SearchError, match=rf"no completed trial meets the targets \['16x'\]; .*{advice}"):
        pipeline.search(small_config(folder), RunFolder.open(folder))


def test_status_tells_a_search_that_runs_from_one_that_was_killed(
    finished: tuple[Config, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(finished[1].path, folder)
    config = small_config(folder, "search.trials=6")
    with TrialStore(folder / "trials.sqlite") as store:
        first = store.trials()[0]
        assert status(config).done == 4
        assert "left" in capsys.readouterr().out
        store.start(first)
        assert status(config).done == 3
        assert "trial 1 has been running for" in capsys.readouterr().out
    status(config)
    shown = capsys.readouterr().out
    assert "3 of 6 trials done (1 running, 3 completed)" in shown
    assert "no search is running now; the same command goes on where it stopped" in shown
    assert "has been running" not in shown and " left" not in shown
    with TrialStore(folder / "trials.sqlite") as store:
        store.save_document(EXHAUSTED, True)
    status(config)
    assert "the same command goes on" in capsys.readouterr().out  # what was running is still to do
    with TrialStore(folder / "trials.sqlite") as store:
        store.complete(first, first.metrics)
    status(config)
    shown = capsys.readouterr().out
    assert "everything that it found inside the bounds has been tried" in shown and "goes on" not in shown


def test_workers_have_the_threads_of_their_executor(finished: tuple[Config, RunFolder]) -> None:
    config, run = finished
    wanted = replace(config, trainer=replace(config.trainer, num_threads=7))
    wanted.search = replace(config.search, executor=ExecutorSettings(kind="processes", workers=1, threads=1))
    setup = pipeline.train(config, run)
    with executor_of(wanted, run, setup) as executor:
        assert isinstance(executor, ProcessPool)
        factory = pickle.loads(executor._description)
    torch.set_num_threads(1)
    factory()
    assert torch.get_num_threads() == 1


def test_a_moved_run_folder_verifies(finished: tuple[Config, RunFolder], tmp_path: Path) -> None:
    config, run = finished
    moved = shutil.copytree(run.path, tmp_path / "elsewhere")
    assert pipeline.verify(config, RunFolder.open(moved)) == 0


def test_another_board_from_the_same_trials_and_some_more(finished: tuple[Config, RunFolder], tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished[1].path, folder)
    there = ["board=pynq_z2", "search.min_compression=[12]"]
    earlier = retarget_run(small_config(folder, *there))[0]
    assert not (folder / "retarget" / "pynq_z2" / "trials.sqlite").exists()
    (answer,) = retarget_run(small_config(folder, *there), more_trials=2)
    assert answer.trials_inside > earlier.trials_inside

    def stored() -> list[Trial]:
        with TrialStore(folder / "retarget" / "pynq_z2" / "trials.sqlite", read_only=True) as store:
            return list(store.trials())

    first = stored()
    assert [trial.origin for trial in first] == 4 * ["earlier"] + ["lagrange", "acquisition"]
    assert all(trial.has_ended and trial.error is None for trial in first)
    with TrialStore(folder / "trials.sqlite", read_only=True) as store:
        assert [trial.metrics for trial in store.trials()] == [trial.metrics for trial in first[:4]]
    retarget_run(small_config(folder, *there), more_trials=2)
    assert stored() == first
    retarget_run(small_config(folder, *there), more_trials=3)
    assert stored()[:6] == first
    assert len(stored()) == 7
    with pytest.raises(SearchError, match=r"(?s)made with other settings.*fidelity.epochs: .*only the board and the"):
        retarget_run(small_config(folder, *there, "search.train_steps=5"), more_trials=4)
    untrained = ["search.train_steps=0", "quant.one_shot_rounding=layerwise"]
    with pytest.raises(SearchError, match='one_shot_rounding: stored nothing, now "layerwise"'):
        retarget_run(small_config(folder, *there, *untrained), more_trials=4)
    assert len(stored()) == 7


def test_more_trials_start_from_all_that_the_search_has_by_then(
    finished: tuple[Config, RunFolder], tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished[1].path, folder)
    config = small_config(folder, "board=pynq_z2", "search.min_compression=[12]")

    def points(path: Path) -> set[tuple[int, ...]]:
        with TrialStore(path, read_only=True) as store:
            return {trial.point for trial in store.trials()}

    there = folder / "retarget" / "pynq_z2" / "trials.sqlite"
    retarget_run(config, more_trials=1)
    (own,) = points(there) - points(folder / "trials.sqlite")
    space, costs, _ = plan(small_config(folder))
    fresh = tuple(0 for _ in space.sizes)
    assert fresh not in points(there)
    with TrialStore(folder / "trials.sqlite") as store:
        for point in (own, fresh):
            cost = {name: float(values[0]) for name, values in costs.evaluate(space.layer_indices([point])).items()}
            trial = store.add(
                point=point, config=space.config(point), fidelity=store.trials()[0].fidelity, seed=1, target="16x",
                origin="random", cost=cost,
            )  # fmt: skip
            store.complete(store.start(trial), {"accuracy": 0.5})
    retarget_run(config, more_trials=1)
    with TrialStore(there, read_only=True) as store:
        assert [trial.origin == "earlier" for trial in store.trials()] == 4 * [True] + [False, True]
    assert points(there) == points(folder / "trials.sqlite")
    retarget_run(config, more_trials=2)
    assert len(points(there)) == 7


def test_damaged_packed_files_are_refused_and_named(finished: tuple[Config, RunFolder], tmp_path: Path) -> None:
    config, run = finished
    copy = shutil.copytree(run.path, tmp_path / "copy")
    victim = copy / "networks" / "mix_16x" / "packed" / "weights.bin"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(PackedFormatError, match=r"weights\.bin"):
        pipeline.verify(config, RunFolder.open(copy))


def test_a_changed_code_is_counted(
    finished: tuple[Config, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: a model that computes one code differently is found."""
    config, run = finished
    copy = shutil.copytree(run.path, tmp_path / "copy")
    original = DeployedNetwork.layer_codes

    def shifted(self, images):  # type: ignore[no-untyped-def]
        codes = original(self, images)
        codes["linear"][0, 0] += 1
        return codes

    monkeypatch.setattr(DeployedNetwork, "layer_codes", shifted)
    assert pipeline.verify(config, RunFolder.open(copy)) > 0


def test_sparse_planes_by_gradients_thin_out_and_trials_may_train_nothing(tmp_path: Path) -> None:
    """Settings of masks and rounding, from the command line to packed files that agree code for code."""
    overrides = ["trainer.mask_saliency=taylor", "trainer.mask_schedule=gradual", "trainer.mask_update_steps=3"]
    overrides += ["quant.one_shot_rounding=layerwise", "search.train_steps=0", "search.weight_bit_widths=[1]"]
    config = small_config(
        tmp_path / "gradual", *overrides, "search.trials=1", "search.initial_trials=1", "baselines=[]"
    )
    run = RunFolder.create(config)
    assert pipeline.demo(config, run) == 0
    assert json.loads((run.path / "networks" / "mix_16x" / "result.json").read_text())
    # Trials of before, whose store does not say how they round, did it as config.yaml says.
    longer = [*overrides, "search.trials=3", "search.initial_trials=1", "baselines=[]"]
    _forget_rounding(run.path / "trials.sqlite")
    pipeline.search(small_config(tmp_path / "gradual", *longer), run)
    _forget_rounding(run.path / "trials.sqlite")
    there = [*longer, "board=zcu104"]
    retarget_run(small_config(tmp_path / "gradual", *there), more_trials=1)
    _forget_rounding(run.path / "retarget" / "zcu104" / "trials.sqlite")
    retarget_run(small_config(tmp_path / "gradual", *there), more_trials=2)
    with pytest.raises(SearchError, match='one_shot_rounding: stored "layerwise", now absent'):
        retarget_run(small_config(tmp_path / "gradual", *there, "quant.one_shot_rounding=nearest"), more_trials=2)


def _forget_rounding(path: Path) -> None:
    with TrialStore(path) as store:
        fingerprint = store.document("fingerprint")
        assert fingerprint is not None
        assert fingerprint["context"].pop("one_shot_rounding") == "layerwise"
        store.save_document("fingerprint", fingerprint)


def test_a_front_of_searched_activation_bits_and_tied_layers(tmp_path: Path) -> None:
    """From the command line to packed files that agree code for code, at whatever widths layers read."""
    overrides = ["search.front=[bram18,offchip_bits]", "search.front_networks=2", "search.act_bit_widths=[2,4,8]"]
    overrides += ["search.groups=[[layer1.*]]", "search.trials=5", "search.initial_trials=4", "baselines=[]"]
    overrides += ["search.bounds=[{column: compression, low: 6}]", "search.granularities=[element,kernel]"]
    overrides += ["search.sparse_densities=[0.25,0.5]", "search.density_levels=5"]
    config = small_config(tmp_path / "front", *overrides)
    run = RunFolder.create(config)
    assert pipeline.demo(config, run) == 0
    with TrialStore(run.path / "trials.sqlite", read_only=True) as store:
        trials = {f"mix_trial{trial.id}": trial for trial in store.trials()}
    assert [trial.origin for trial in trials.values()][-1] == "acquisition"
    found = pipeline.results(run)
    assert 1 <= len(found) <= 2
    assert {result.name for result in found} <= set(trials)
    assert all(result.differing_codes == 0 and result.compression >= 6 for result in found)
    read = [{layer.act_bit_width for name, layer in t.config.layers if name != "conv1"} for t in trials.values()]
    assert set().union(*read) == {2, 4, 8}
    assert any(len(widths) > 1 for widths in read)
    for trial in trials.values():
        assert trial.cost["compression"] >= 6
        assert len({layer for name, layer in trial.config.layers if name.startswith("layer1.")}) == 1
    assert {path.name for path in (run.path / "plots").iterdir()} >= {"front_bram18.png", "front_offchip_bits.png"}
    there = [*overrides, "board=zcu102", "search.front=[lut]"]
    space, costs, _ = plan(small_config(tmp_path / "front", *there))
    folder = run.path / "retarget" / "zcu102"
    for more in (0, 1):
        (answer,) = retarget_run(small_config(tmp_path / "front", *there), more)
        assert isinstance(answer, RetargetedFront) and answer.trials_inside == 5 + more
        rows = json.loads((folder / "front.json").read_text())
        assert len(rows) == len(answer.evaluated) + len(answer.predicted)
        assert {path.stem for path in (folder / "front").iterdir()} == {row["configuration"] for row in rows}
        for row in rows:
            stored = json.loads((folder / "front" / f"{row['configuration']}.json").read_text())
            point = space.point(NetworkConfig.from_dict(stored))
            exact = costs.evaluate(space.layer_indices([point]))
            assert all(row[column] == values[0] for column, values in exact.items())
        assert "lut" in (folder / "summary.txt").read_text()


DROPOUT = """
from torch import nn

def network(num_classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(288, num_classes))
"""


def test_a_network_with_dropout_trains_alike_for_one_seed(tmp_path: Path) -> None:
    (tmp_path / "dropout_of_test.py").write_text(DROPOUT)
    own = ["network.factory=dropout_of_test:network", f"network.path={tmp_path}", "trainer.float_epochs=1"]
    losses = []
    for name in "ab":
        config = small_config(tmp_path / name, *own)
        run = RunFolder.create(config)
        pipeline.train(config, run)
        losses.append(run.read_json("float.json")["loss"])
        torch.rand(5)
    assert losses[0] == losses[1]


def test_what_the_report_says_of_scores(finished: tuple[Config, RunFolder]) -> None:
    config, run = finished
    found = [Result.from_dict(row) for row in json.loads((run.path / "summary.json").read_text())]
    assert "Test accuracy is on 360 images" in _notes(config, found)[0]
    assert "standard error" in _notes(config, found)[0]
    first = _notes(config, [replace(result, score="ap50") for result in found])[0]
    assert first.startswith("Test AP50 is on 360 images") and "standard error" not in first


def test_stages_out_of_order_say_what_is_missing(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run")
    run = RunFolder.create(config)
    with pytest.raises(RunFolderError, match=r"has no trained network; run scripts/search\.py first"):
        pipeline.export(config, run)


@pytest.mark.data
def test_published_resnet20_reaches_its_float_accuracy(tmp_path: Path, data_root: Path) -> None:
    """Shared weights, loaded strictly, on the 500 shared test images: 91.00 % (DATA.md, same images)."""
    config = compose_config(
        ["experiment=cifar10_resnet20", f"data.root={data_root}", f"run_dir={tmp_path / 'run'}", "trainer=default"]
    )
    run = RunFolder.create(config)
    pipeline.train(config, run)
    found = run.read_json("float.json")
    assert (found["accuracy"], found["images"]) == (0.91, 500)


def test_without_trials_the_baselines_alone_are_trained(tmp_path: Path) -> None:
    config = small_config(tmp_path / "uniform", "search.trials=0", "baselines=[4]")
    run = RunFolder.create(config)
    assert pipeline.demo(config, run) == 0
    names = {path.name for path in run.path.rglob("*")}
    assert {"uniform_w4", "report.html", "summary.csv"} <= names
    assert not {"trials.sqlite", "sensitivity.json"} & names
    with pytest.raises(ConfigError, match=r"baselines=\[\], expected at least one, or search.trials >= 1"):
        small_config(tmp_path / "nothing", "search.trials=0", "baselines=[]")
