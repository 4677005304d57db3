from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import yaml

from qat import files
from qat.compose import compose_config, config_from_dict, to_config
from qat.config import Config
from qat.errors import RunFolderError
from qat.files import write_rows, write_text
from qat.runs import RunFolder


def _config(folder: Path, *overrides: str) -> Config:
    return compose_config([f"run_dir={folder}", *overrides])


def test_new_folder_holds_everything_about_the_run(tmp_path: Path) -> None:
    config = _config(tmp_path / "run", "seed=3")
    run = RunFolder.create(config, ["seed=3"])
    assert to_config(config_from_dict(run.config_values(), "stored")) == config
    assert yaml.safe_load((run.path / "overrides.yaml").read_text(encoding="utf-8")) == ["seed=3"]
    (environment,) = run.read_json("environment.json")
    assert environment["seed"] == 3
    assert environment["versions"]["torch"]
    assert environment["threads"] == 1
    assert environment["device"]
    assert set(environment) >= {"date", "command", "git_revision", "git_dirty", "python", "platform"}


def test_same_configuration_goes_on(tmp_path: Path) -> None:
    first = RunFolder.create(_config(tmp_path / "run"))
    first.write_json("result.json", 1)
    again = RunFolder.create(
        _config(tmp_path / "run", "trainer.progress_bar=false", "trainer.num_threads=1", "trainer.compile=true")
    )
    assert again == first
    assert again.read_json("result.json") == 1
    assert len(again.read_json("environment.json")) == 2


def test_a_longer_search_goes_on_in_the_folder_and_is_noted_by_the_command_that_searches(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path / "run", "search.trials=12", "search.retry_failed=true"))
    run.write_json("float.json", {})
    longer = ["search.trials=50", "search.max_failed_share=1", "search.screening_share=0.5", "search.retry_failed=true"]
    config = _config(tmp_path / "run", *longer)
    assert RunFolder.create(config) == run
    assert run.config_values()["search"]["trials"] == 12
    with run.in_use():
        run.note_length(config)
    noted = run.config_values()["search"]
    assert (noted["trials"], noted["max_failed_share"], noted["screening_share"]) == (50, 1, 0.5)
    assert noted["retry_failed"] is False  # asked for once, in the first command too
    with pytest.raises(RunFolderError, match="search.initial_trials: 8 there, 4 now"):
        RunFolder.create(_config(tmp_path / "run", "search.initial_trials=4"))


def test_other_configuration_is_refused_with_its_keys(tmp_path: Path) -> None:
    RunFolder.create(_config(tmp_path / "run")).write_json("float.json", {})
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    message = r"another configuration \(seed: 0 there, 5 now; .*trainer.epochs: 10 there, 11 now\).*run_dir=<folder>"
    with pytest.raises(RunFolderError, match=message):
        RunFolder.create(_config(tmp_path / "run", "seed=5", "trainer.epochs=11"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_folder_without_results_takes_another_configuration(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path / "run"), ["a=1"])
    (run.path / "search.log").write_text("BudgetError", encoding="utf-8")
    (run.path / "float").mkdir()
    other = _config(tmp_path / "run", "seed=5")
    assert RunFolder.create(other, ["seed=5"]) == run
    assert to_config(config_from_dict(run.config_values(), "stored")) == other
    assert yaml.safe_load((run.path / "overrides.yaml").read_text(encoding="utf-8")) == ["seed=5"]
    assert len(run.read_json("environment.json")) == 1  # of the commands that made what is there
    (run.path / "float" / "last.ckpt").touch()
    with pytest.raises(
        RunFolderError, match=r"holds results of another configuration \(seed: 5 there, 6 now; .*run_dir"
    ):
        RunFolder.create(_config(tmp_path / "run", "seed=6"))


def test_a_folder_in_use_keeps_its_configuration(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path / "run"))
    with run.in_use(), pytest.raises(RunFolderError, match=r"is in use by a command of another .*wait until it has"):
        RunFolder.create(_config(tmp_path / "run", "seed=5"))
    assert run.config_values()["seed"] == 0


def test_one_command_at_a_time_trains_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(_config(tmp_path / "run"))
    message = rf"another command trains in the run folder .*run \(process {os.getpid()}\); wait for it to end, stop it"
    with run.training():
        with pytest.raises(RunFolderError, match=message), run.training():
            pass
        monkeypatch.setenv("LOCAL_RANK", "1")  # one of the same command
        with run.training():
            pass
        monkeypatch.delenv("LOCAL_RANK")
    with run.training():
        pass
    assert RunFolder.create(_config(tmp_path / "run", "seed=5"))  # the lock is no result


def test_settings_that_came_later_mean_what_was_done_before(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path / "run"))
    run.write_json("float.json", {})
    values = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    del values["trainer"]["mask_schedule"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert RunFolder.create(_config(tmp_path / "run")) == run
    with pytest.raises(RunFolderError, match="trainer.mask_schedule: 'immediate' there, 'gradual' now"):
        RunFolder.create(_config(tmp_path / "run", "trainer.mask_schedule=gradual"))


def test_a_folder_with_one_granularity_goes_on_with_a_list_of_it(tmp_path: Path) -> None:
    kernels = "search.granularities=[kernel]"
    run = RunFolder.create(_config(tmp_path / "run", kernels))
    run.write_json("float.json", {})
    values = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    del values["search"]["granularities"]
    values["search"]["granularity"] = "kernel"
    (run.path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert RunFolder.create(_config(tmp_path / "run", kernels)) == run
    with pytest.raises(RunFolderError, match=r"search.granularities: \['kernel'\] there, \['element'\] now"):
        RunFolder.create(_config(tmp_path / "run"))


def test_moved_data_and_weights_are_the_same_configuration(tmp_path: Path) -> None:
    experiment = "experiment=cifar10_resnet20"
    run = RunFolder.create(_config(tmp_path / "run", experiment, "data.root=/a"))
    run.write_json("float.json", {})
    with run.in_use():
        assert RunFolder.create(_config(tmp_path / "run", experiment, "data.root=/c")) == run
    assert run.config_values()["data"]["root"] == "/a"
    moved = [experiment, "data.root=/b", "network.path=/code", "trainer.num_threads=7"]
    assert RunFolder.create(_config(tmp_path / "run", *moved)) == run
    values = run.config_values()  # later commands find things where they are now
    assert (values["data"]["root"], values["network"]["path"]) == ("/b", "/code")
    assert values["trainer"]["num_threads"] != 7
    with pytest.raises(RunFolderError, match="network.weights: 'resnet20-12fca82f.th' there, 'other.th' now"):
        RunFolder.create(_config(tmp_path / "run", experiment, "network.weights=/b/other.th"))


def test_opened_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = RunFolder.create(_config(Path("run")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert RunFolder.open("../run") == made
    assert made.config_values()["run_dir"] == str(tmp_path / "run")


def test_folder_moved_with_its_results_opens(tmp_path: Path) -> None:
    RunFolder.create(_config(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    run = RunFolder.open(tmp_path / "moved")
    config = to_config(config_from_dict(run.config_values(), "stored"))
    assert RunFolder.create(config) == run


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(RunFolderError, match="is not a run folder: it has no config.yaml"):
        RunFolder.open(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"is not empty \(thesis.tex\)"):
        RunFolder.create(_config(tmp_path))
    (tmp_path / "config.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match="holds list, expected groups of settings"):
        RunFolder.open(tmp_path).config_values()
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(RunFolderError, match="config.yaml cannot be read"):
        RunFolder.open(tmp_path).config_values()


def test_unwritable_folder_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"run folder .*file/run cannot be written: .*run_dir=<folder>"):
        RunFolder.create(_config(tmp_path / "file" / "run"))


def test_rows_are_kept_as_csv_and_json(tmp_path: Path) -> None:
    rows = [{"name": "float", "top1": 0.91}, {"name": "mix", "top1": 0.9, "bits": 1.25}]
    write_rows(tmp_path / "summary", rows)
    assert list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines())) == [
        {"name": "float", "top1": "0.91", "bits": ""},
        {"name": "mix", "top1": "0.9", "bits": "1.25"},
    ]
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == rows


def test_missing_and_damaged_json(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path / "run"))
    with pytest.raises(RunFolderError, match="summary.json does not exist; the step that makes it has not run"):
        run.read_json("summary.json")
    (run.path / "summary.json").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(RunFolderError, match="summary.json is damaged"):
        run.read_json("summary.json")


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.json", json.dumps("old"))

    def no_space(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(RunFolderError, match=r"could not write .*a.json: No space left on device; what was there is"):
        write_text(tmp_path / "a.json", json.dumps("new"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
