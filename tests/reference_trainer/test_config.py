from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro
from pydantic import BaseModel, ValidationError

from boxreg.iou.spec import FAMILY
from boxreg.losses import box
from reference_trainer import model
from reference_trainer.__main__ import main
from reference_trainer.commands import COMMANDS
from reference_trainer.commands.data_sets import DATA_COMMANDS
from reference_trainer.config import PRESETS, LossConfig, ModelConfig, TrainConfig, load_config, save_config
from reference_trainer.errors import ConfigError

ROOT = Path(__file__).parents[2]

CONTRADICTIONS = {
    "dense head, linear output": (
        "model: {head: dense, output: linear}",
        ["--model.head", "dense", "--model.output", "linear"],
        ["head 'dense'", "output 'linear'", "set output to 'boxhead', or head to 'pooled'"],
    ),
    "beta2 of SGD": (
        "optimizer: {name: sgd, beta2: 0.9}",
        ["--optimizer.name", "sgd", "--optimizer.beta2", "0.9"],
        ["beta2: got 0.9", "sgd has no beta2", "set name to 'adamw'"],
    ),
    "objectness of a pooled head": (
        "model: {head: pooled}\nloss: {lambda_noobj: 2}",
        ["--model.head", "pooled", "--loss.lambda-noobj", "2"],
        ["lambda_noobj: got 2.0", "head 'pooled' has no objectness", "set head to 'dense'"],
    ),
    "a decoder for one box": (
        "model: {decoder: ltrb}",
        ["--model.decoder", "ltrb"],
        ["decoder: got ltrb", "task 'single' does not read it", "set task to 'grid'"],
    ),
    "a pooled head for many boxes": (
        "task: grid\nmodel: {head: pooled}",
        ["--task", "grid", "--model.head", "pooled"],
        ["head: got pooled", "task 'grid' does not read it", "set task to 'single'"],
    ),
    "anchor ratios without anchors": (
        "task: grid\nmodel: {decoder: dfl, assigner: anchor_ratio}",
        ["--task", "grid", "--model.decoder", "dfl", "--model.assigner", "anchor_ratio"],
        ["assigner: got 'anchor_ratio'", "decoder 'dfl' has no anchors", "'yolov3' or 'yolov5'"],
    ),
    "objectness of classes that score alone": (
        "task: grid\nmodel: {decoder: ltrb}\nloss: {lambda_obj: 2}",
        ["--task", "grid", "--model.decoder", "ltrb", "--loss.lambda-obj", "2"],
        ["lambda_obj: got 2.0", "assigner 'task_aligned' has no objectness", "set assigner to another"],
    ),
    "distributions that are not there": (
        "task: grid\nmodel: {decoder: cell}\nloss: {lambda_dfl: 2}",
        ["--task", "grid", "--model.decoder", "cell", "--loss.lambda-dfl", "2"],
        ["lambda_dfl: got 2.0", "decoder 'cell' has no distributions"],
    ),
    "size off the coarsest level": (
        "task: grid\nmodel: {levels: 3}\ndata: {size: 80}",
        ["--task", "grid", "--model.levels", "3", "--data.size", "80"],
        ["size: got 80", "a multiple of 32", "3 levels"],
    ),
    "toy images of a folder": (
        "data: {path: photographs, images: 40}",
        ["--data", "photographs", "--data.images", "40"],
        ["images: got 40", "they come from", "photographs"],
    ),
    "jitter without strength": (
        "augment: {brightness: 0, contrast: 0, saturation: 0}",
        ["--augment.brightness", "0", "--augment.contrast", "0", "--augment.saturation", "0"],
        ["colour: got 0.3", "all 0", "colour to 0"],
    ),
    "nothing to learn": (
        "loss: {lambda_coord: 0, lambda_wh: 0, lambda_iou: 0}",
        ["--loss.lambda-coord", "0", "--loss.lambda-wh", "0", "--loss.lambda-iou", "0"],
        ["lambda_coord, lambda_wh, lambda_iou", "no box would be learned"],
    ),
    "size off the stride": (
        "data: {size: 100}",
        ["--data.size", "100"],
        ["size: got 100", "a multiple of 16"],
    ),
    "two warm-ups": (
        "schedule: {warmup_steps: 5, warmup_epochs: 2}",
        ["--schedule.warmup-steps", "5", "--schedule.warmup-epochs", "2"],
        ["warmup_steps: got 5", "warmup_epochs: got 2", "give one of them"],
    ),
    "two patiences": (
        "patience: 5\npatience_steps: 50",
        ["--patience", "5", "--patience-steps", "50"],
        ["patience: got 5", "patience_steps: got 50", "give one of them"],
    ),
    "plateau settings of another schedule": (
        "schedule: {factor: 0.5}",
        ["--schedule.factor", "0.5"],
        ["factor: got 0.5", "schedule 'cosine'", "set name to 'plateau'"],
    ),
    "Nesterov without momentum": (
        "optimizer: {name: sgd, nesterov: true, momentum: 0}",
        ["--optimizer.name", "sgd", "--optimizer.nesterov", "--optimizer.momentum", "0"],
        ["nesterov: got True", "momentum is 0"],
    ),
    "Nesterov of AdamW": (
        "optimizer: {nesterov: true}",
        ["--optimizer.nesterov"],
        ["nesterov: got True", "adamw has none", "set name to 'sgd'"],
    ),
    "more parts than images": (
        "batch_size: 4\naccumulate: 5",
        ["--batch-size", "4", "--accumulate", "5"],
        ["accumulate: got 5", "at most batch_size, 4"],
    ),
    "a scale off the stride": (
        "data: {scales: [120, 128]}",
        ["--data.scales", "120", "128"],
        ["scales: got 120", "a multiple of 16"],
    ),
    "negative lr": ("optimizer: {lr: -1}", ["--optimizer.lr", "-1"], ["lr", "-1", "greater than 0"]),
    "infinite lr": ("optimizer: {lr: .inf}", ["--optimizer.lr", "inf"], ["lr", "inf", "finite number"]),
    "dropout of 1": ("model: {dropout: 1}", ["--model.dropout", "1"], ["dropout", "1", "less than 1"]),
    "flips more than always": ("augment: {hflip: 2}", ["--augment.hflip", "2"], ["hflip", "2", "equal to 1"]),
    "no epoch": ("epochs: 0", ["--epochs", "0"], ["epochs", "0", "greater than or equal to 1"]),
    "negative lambda": (
        "loss: {lambda_iou: -5}",
        ["--loss.lambda-iou", "-5"],
        ["lambda_iou", "-5", "greater than or equal to 0"],
    ),
    "unknown head": ("model: {head: densse}", ["--model.head", "densse"], ["head", "densse", "pooled"]),
    "text for a number": ("epochs: many", ["--epochs", "many"], ["epochs", "many", "int"]),
}


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return file


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command line says when it refuses, its frames and line breaks taken away."""
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code: Any = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.replace("│", " ").split())


def trained_with(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The configuration that a command line comes to; nothing is trained."""
    seen: list[TrainConfig] = []

    def pretend(config: TrainConfig) -> dict[str, Any]:
        seen.append(config)
        summary = {"run": "run", "task": "toy", "mean_iou": 0.5, "shown": ["mean_iou"]}
        return summary | {"seconds": 1.0, "stopped_by": None, "lost": []}

    monkeypatch.setattr("reference_trainer.train.train", pretend)
    assert main(["train", *arguments]) == 0
    return seen[0]


def test_the_baseline_is_the_set_up_that_got_stuck() -> None:
    baseline = PRESETS["baseline"]
    assert baseline.optimizer.name == "sgd"
    assert baseline.optimizer.momentum > 0
    assert not baseline.optimizer.exempt
    assert (baseline.model.head, baseline.model.output) == ("pooled", "linear")
    assert baseline.batch_size == 4
    assert baseline.model.dropout == 0.5
    assert baseline.model.norm == "none"
    assert baseline.model.activation == "leaky_relu"
    loss = baseline.loss
    assert (loss.lambda_coord, loss.lambda_wh, loss.lambda_iou, loss.overlap) == (5.0, 5.0, 1.0, "ciou")
    assert baseline.clip_norm == 1.0
    assert baseline.patience == 25
    assert baseline.ema_decay == 0
    assert (baseline.schedule.name, baseline.optimizer.lr) == ("steps", 1e-2)
    # 1,200 images: 960 to train on, 240 steps an epoch.
    assert baseline.data.images * 4 // 5 // baseline.batch_size == 240


def test_the_baseline_augments_nothing() -> None:
    augment = PRESETS["baseline"].augment.model_dump()
    assert augment.pop("crop") == 1
    assert set(augment.values()) == {0}


def test_the_reference_is_the_default_and_the_whole_recipe() -> None:
    reference = PRESETS["reference"]
    assert reference == TrainConfig()
    assert (reference.optimizer.name, reference.optimizer.exempt) == ("adamw", True)
    assert reference.model.output == "boxhead"
    assert 8 <= reference.batch_size <= 16
    assert reference.model.dropout <= 0.3
    assert reference.model.norm == "group"
    assert reference.augment.hflip > 0
    assert reference.loss.lambda_iou >= 2
    assert reference.schedule.name == "cosine"
    assert reference.clip_norm is None or reference.clip_norm >= 3
    assert reference.ema_decay > 0
    assert 15 <= reference.patience_epochs(60) <= 20


@pytest.mark.parametrize("preset", PRESETS)
def test_a_saved_configuration_is_read_back_whole(preset: str, tmp_path: Path) -> None:
    config = PRESETS[preset].model_copy(update={"seed": 7, "out": tmp_path / "runs", "clip_norm": None})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_missing_keys_keep_their_default_and_numbers_may_be_written_as_1e_3(tmp_path: Path) -> None:
    # PyYAML reads 1e-3, which has no point, as text.
    config = load_config(written(tmp_path, "optimizer: {lr: 1e-3}\nepochs: 3\n"))
    expected = TrainConfig().model_dump()
    expected["optimizer"]["lr"], expected["epochs"] = 1e-3, 3
    assert config.model_dump() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "epoch: unknown setting; did you mean 'epochs'?"),
        ("data: {image: 3}", "data.image: unknown setting; did you mean 'images'?"),
        ("data: {pictures: 3}", "data.pictures: unknown setting; did you mean 'images'?"),
        ("optimizer: {learning_rate: 3}", "optimizer.learning_rate: unknown setting; "),
        ("zzz: 3", "zzz: unknown setting; known are task, epochs, seed, "),
    ],
    ids=["top", "branch", "renamed", "far from any", "nothing near"],
)
def test_an_unknown_key_is_refused_with_a_suggestion(text: str, message: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("option", "suggestion"),
    [("--epochz", "--epochs"), ("--data.pictures", "--data.images"), ("--optimizer.lrr", "--optimizer.lr")],
)
def test_an_unknown_option_is_refused_with_a_suggestion(
    option: str, suggestion: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(["train", option, "3"], capsys, monkeypatch)
    assert option in message
    assert suggestion in message.split("did you mean")[1]


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    text, _, said = CONTRADICTIONS[case]
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_options_that_contradict_themselves_are_refused(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, arguments, said = CONTRADICTIONS[case]
    message = refusal(["train", *arguments], capsys, monkeypatch)
    for words in said:
        assert words in message


def test_an_unknown_overlap_is_refused_with_a_suggestion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(["train", "--loss.overlap", "ciuo"], capsys, monkeypatch)
    assert "overlap: got 'ciuo'" in message
    assert "did you mean 'ciou'?" in message


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, "epoch: 3\ndata: {size: 100}\noptimizer: {lr: -1}\n"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(str(tmp_path / "settings.yaml")) for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {size: ", "1: not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- epochs\n- 3\n", "expected a mapping of settings, got list"),
        (b"", "expected a mapping of settings, got NoneType"),
        (b"3", "expected a mapping of settings, got int"),
        (b"1: 2", "1: "),
        (b"data: 3", "data: "),
    ],
    ids=["broken", "binary", "list", "empty", "number", "number for a key", "number for a branch"],
)
def test_a_file_that_is_no_configuration_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file or folder"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_settings_do_not_change_later() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["baseline"].optimizer.lr = 1.0


def test_options_change_what_the_preset_says(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--preset", "baseline", "--epochs", "3", "--seed", "5", "--data", "images"]
    config = trained_with([*arguments, "--optimizer.lr", "0.5", "--clip-norm", "None"], monkeypatch)
    expected = PRESETS["baseline"].model_dump()
    expected |= {"epochs": 3, "seed": 5, "clip_norm": None}
    # Made absolute: a run is evaluated from other folders too.
    expected["data"]["path"], expected["optimizer"]["lr"] = Path("images").resolve(), 0.5
    assert config.model_dump() == expected


def test_options_change_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "epochs: 3\nseed: 4\n")
    config = trained_with(["--config", str(file), "--seed", "5"], monkeypatch)
    assert config == TrainConfig(epochs=3, seed=5)


def test_a_preset_and_a_file_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "epochs: 3")
    message = refusal(["train", "--preset", "baseline", "--config", str(file)], capsys, monkeypatch)
    assert "--preset and --config" in message
    assert "baseline" in refusal(["train", "--preset", "basline"], capsys, monkeypatch)
    message = refusal(["train", "--preset", "baseline", "--task", "grid"], capsys, monkeypatch)
    assert "task: got 'grid', but preset 'baseline' is of task 'single'" in message


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        ([], "reference"),
        (["--task", "single"], "reference"),
        (["--task", "grid"], "grid"),
        (["--task", "grid", "--data", "somewhere"], "photos"),
    ],
)
def test_the_task_chooses_the_preset(
    arguments: list[str], preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained_with(arguments, monkeypatch)
    assert config.model_copy(update={"data": PRESETS[preset].data}) == PRESETS[preset]


@pytest.mark.parametrize(
    ("command", "hint"), [("trian", "did you mean 'train'?"), ("x", f"expected one of {', '.join(COMMANDS)}")]
)
def test_an_unknown_command_is_refused_with_a_suggestion(
    command: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal([command], capsys, monkeypatch).endswith(f"unknown command {command!r}; {hint}")


NAMES = [[], *([name] for name in COMMANDS), *(["data", name] for name in DATA_COMMANDS)]


@pytest.mark.parametrize("arguments", NAMES, ids=lambda names: " ".join(names) or "-")
def test_help_answers_without_importing_torch(arguments: list[str]) -> None:
    program = """if True:
        import sys
        from reference_trainer.__main__ import main
        try:
            main(sys.argv[1:])
        finally:
            heavy = {"torch", "torchvision", "matplotlib", "numpy", "boxreg"} & set(sys.modules)
            print("imported", sorted(heavy), file=sys.stderr)
    """
    command = [sys.executable, "-c", program, *arguments, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "imported []"
    assert "usage: " in done.stdout or "reference_trainer train" in done.stdout


def settings_of(branch: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The options of a branch and all below it, with their help texts."""
    for name, field in branch.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{prefix}{name}.")
        elif tyro.conf.Suppress not in field.metadata:
            yield f"--{prefix}{name}".replace("_", "-"), field.description or ""


def test_the_help_of_train_has_every_setting_with_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    settings = dict(settings_of(TrainConfig))
    assert len(settings) > 60
    for option, text in settings.items():
        assert option in shown.replace("--augment.no-", "--augment."), option
        assert text, option
        assert " ".join(text.split()) in shown, option


@pytest.mark.parametrize(
    ("branch", "setting", "table"),
    [
        (LossConfig, "distance", box.DISTANCES),
        (LossConfig, "size", box.SIZES),
        (ModelConfig, "norm", model.NORMS),
        (ModelConfig, "activation", model.ACTIVATIONS),
    ],
    ids=["distance", "size", "norm", "activation"],
)
def test_a_choice_offers_what_there_is(
    branch: type[BaseModel], setting: str, table: dict[str, object]
) -> None:
    # The configuration spells them out, so that --help need not import torch.
    assert set(get_args(branch.model_fields[setting].annotation)) == set(table)


def test_the_help_names_every_row_of_the_family() -> None:
    description = LossConfig.model_fields["overlap"].description
    assert description is not None
    assert set(description.split(": ")[1].rstrip(".").split(", ")) == set(FAMILY)
