"""What a person types: `python -m cluster COMMAND`. Jobs are imported only when they run."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from cluster.config import PRESETS, Config, Run, dump_config, load_config
from cluster.section import Section
from data.store import Store

DEMO_CONFIG = Path(__file__).with_name("demo.yaml")


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        target: `module:function` that takes a `Config`.
        help: First line, then what an engineer needs to know to use it.
        sections: Sections of the configuration its help lists; all others are accepted too.
        positionals: Positional arguments as pairs of name and the field each one sets.
        flags: Words that switch a field on, as pairs of word and field.
        aliases: Other words for a field, as pairs of word and field.
        config: YAML file used where `--config` is not given.
        continues: Whether the command works on a finished run, whose own settings then are the
            ones used where `--config` is not given.
    """

    target: str
    help: str
    sections: tuple[str, ...]
    positionals: tuple[tuple[str, str], ...] = ()
    flags: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    config: Path | None = None
    continues: bool = False


COMMANDS = {
    "demo": Command(
        "cluster.demo:demo",
        """See the method work on real digits, in about ten minutes on two cores.

        Packs 5,000 MNIST digits whose "normal" training images are 20 % wrong, trains AnoGAN and
        the method side by side, inspects held-out digits with both, and prints one table.
        Results, report and MLflow database go to run.dir; summary.json holds the table.""",
        ("run", "objective", "schedule", "search", "cluster"),
        config=DEMO_CONFIG,
    ),
    "pack": Command(
        "cluster.pack:pack_dataset",
        """Turn images into WebDataset shards with a resolution pyramid.

        SOURCE is a folder (one sub-folder per class with normal or good among them; MVTec;
        Caltech-256; MNIST's IDX files; WebDataset shards) or a CSV or Parquet table. `digits` and
        `surfaces` stand for the two built-in sets. DEST holds the result, dataset.json last; both
        are paths or s3:// URIs. Images that cannot be used are listed in quarantine.jsonl,
        near-duplicates in different splits in duplicates.jsonl. Run the same command again to
        finish what a stopped one left.""",
        ("run", "data", "pack", "networks", "cluster"),
        positionals=(("SOURCE", "pack.source"), ("DEST", "data.uri")),
        flags=(("--preview", "pack.preview"),),
    ),
    "train": Command(
        "cluster.train:train",
        """Train generator and discriminator, then calibrate the score on the validation split.

        Run the same command again to resume from the last checkpoint in run.dir. The finished
        model lies in run.dir/model, the metrics in run.dir/metrics.jsonl and in MLflow. With
        --dry-run it prints stages, memory and expected time, and stops.""",
        (
            *("run", "data", "networks", "objective", "schedule", "optimizer", "augment"),
            *("encoder", "search", "cluster", "tracking"),
        ),
        flags=(("--dry-run", "cluster.dry_run"),),
    ),
    "tune": Command(
        "tune.study:tune",
        """Search gamma, alpha, lambda, latent steps and step size with Ray Tune.

        Optuna proposes, ASHA stops weak trials early, the validation AUROC decides. The best
        configuration goes to run.dir/tune/best.yaml for `train --config`. Resumes when rerun.""",
        ("run", "data", "tune", "schedule", "cluster", "tracking"),
    ),
    "inspect": Command(
        "cluster.inspection:inspect_dataset",
        """Score every image of a split by latent search, on a pool of Ray actors.

        One shard is one unit of work and appears whole or not at all; run the same command again
        to finish what a stopped job left. Unreadable inputs go to failed/ with the reason.""",
        ("run", "data", "search", "inspect", "cluster"),
        flags=(("--dry-run", "inspect.dry_run"),),
        aliases=(("--limit", "inspect.limit"),),
        continues=True,
    ),
    "evaluate": Command(
        "cluster.evaluate:evaluate_inspection",
        """Compare the scores of an inspection with the labels that came with the images.

        Prints AUROC (all kinds, kinds known in training, kinds nobody labelled), average
        precision and F1, and writes metrics.json beside the scores.""",
        ("run", "data", "inspect", "tracking"),
        continues=True,
    ),
    "report": Command(
        "cluster.report:write_report",
        """Write report.html for an inspection: charts, metrics, a gallery, failed inputs.

        The page opens from disk without a server or network; its data lie beside it in report/, its
        pictures in maps/. All images can be sorted and filtered. MLflow gets a copy with the
        pictures of at most 500 images: missed anomalies and the highest scores.""",
        ("run", "inspect"),
        continues=True,
    ),
    "audit": Command(
        "cluster.audit:audit",
        """Find out how many of the training images called normal are not, and which.

        Scores the training images with the finished model, one shard a unit of work like inspect.
        run.dir/audit holds suspects.csv (most suspicious first), audit.html and audit.json: the
        estimate of the contamination, and the gamma and alpha it asks for.""",
        ("run", "data", "audit", "inspect", "cluster"),
        continues=True,
    ),
    "serve": Command(
        "cluster.serve:serve_model",
        """Score images over HTTP with the calibrated model of a run, on Ray Serve.

        POST /inspect takes the bytes of an image file and answers with score, p-value, decision
        and regions, as inspect would have given; /openapi.json describes it. Clients must send the
        token that the environment variable BLEMISH_TOKEN (serve.token_env) holds. Ctrl-C or SIGTERM
        lets it answer what it has accepted and stop.""",
        ("run", "serve", "inspect", "cluster"),
        continues=True,
    ),
    "export": Command(
        "cluster.export:export_model",
        """Write the calibrated model of a run as an MLflow model (pyfunc) to DEST.

        Its predict takes image files as bytes, and it carries its own code; no pickle. Serve it
        with `mlflow models serve --env-manager local -m DEST`.""",
        ("run", "inspect"),
        positionals=(("DEST", "export.dir"),),
        continues=True,
    ),
    "doctor": Command(
        "cluster.doctor:doctor",
        """Check what a job would need: versions, Ray, the data set, the store, MLflow.

        Prints one line per check and what to do about each failure; exits 1 if any failed.""",
        ("run", "data", "cluster", "tracking"),
        aliases=(("--data", "data.uri"),),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for a mistake of the user's)."""
    try:
        name, config = parse(sys.argv[1:] if argv is None else argv)
        module, _, function = COMMANDS[name].target.partition(":")
        job = cast(
            "Callable[[Config], int | None]", getattr(importlib.import_module(module), function)
        )
        return job(config) or 0
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> tuple[str, Config]:
    """Command name and resolved configuration of a command line, without the program's name.

    Raises:
        UserError: If the configuration is wrong.
        SystemExit: For --help, --print-config, --print-schema, and unknown words.
    """
    args = vars(_parser().parse_args(argv))
    name: str = args.pop("command")
    preset = args.pop("preset")
    path = args.pop("config") or (None if preset else _default_config(COMMANDS[name], args))
    show, schema = args.pop("print_config"), args.pop("print_schema")
    if schema:
        print(json.dumps(Config.model_json_schema(), indent=1))
        raise SystemExit(0)
    config = load_config(path, args, preset=preset)
    if show:
        print(dump_config(config), end="")
        raise SystemExit(0)
    return name, config


def _default_config(command: Command, overrides: dict[str, Any]) -> str | None:
    if command.config:
        return str(command.config)
    if command.continues:
        run = Store(str(overrides.get("run.dir", Run().dir)))
        return run.url("config.yaml") if run.exists("config.yaml") else None
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster",
        description="Find pixel-sized defects when the normal training images are not clean.",
        epilog="python -m cluster COMMAND --help explains a command and its settings.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary, _, details = command.help.partition("\n")
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\n"
            + "\n".join(line.strip() for line in details.strip().split("\n")),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        for metavar, field in command.positionals:
            sub.add_argument(field, metavar=metavar, help=_field_help(field))
        sub.add_argument(
            "--config", metavar="FILE", default=None, help="YAML file with these settings"
        )
        sub.add_argument(
            "--preset",
            choices=sorted(PRESETS, key=int),
            default=None,
            help="settings for a resolution in pixels, for what --config does not say",
        )
        for word, field in command.flags:
            text = _description(field)
            sub.add_argument(word, dest=field, action="store_const", const=True, help=text)
        for option, text in _SHOW.items():
            sub.add_argument(option, action="store_true", default=False, help=text)
        _add_fields(sub, command)
    return parser


def _add_fields(parser: argparse.ArgumentParser, command: Command) -> None:
    positional = {field for _, field in command.positionals}
    for section in Config.model_fields:
        shown = section in command.sections
        group = parser.add_argument_group(section) if shown else parser
        for field in _section(section).model_fields:
            dotted = f"{section}.{field}"
            if dotted not in positional:
                text = _field_help(dotted) if shown else argparse.SUPPRESS
                is_text = _section(section).model_fields[field].annotation is str
                read = str if is_text else _value
                words = [word for word, of in command.aliases if of == dotted]
                names = (f"--{dotted}", *words)
                group.add_argument(*names, dest=dotted, metavar="VALUE", type=read, help=text)


def _section(name: str) -> type[Section]:
    return cast("type[Section]", Config.model_fields[name].annotation)


def _field_help(dotted: str) -> str:
    section, field = dotted.split(".")
    info = _section(section).model_fields[field]
    bounds = [
        f"{text} {getattr(item, name)}"
        for item in info.metadata
        for name, text in _BOUNDS.items()
        if hasattr(item, name)
    ]
    allowed = f"; {', '.join(bounds)}" if bounds else ""
    return f"{_description(dotted)} [default {info.default!r}{allowed}]".replace("%", "%%")


def _description(dotted: str) -> str:
    section, field = dotted.split(".")
    return str(_section(section).model_fields[field].description)


_SHOW = {
    "--print-config": "show the resolved settings as YAML and stop",
    "--print-schema": "show the JSON schema of the settings, for editors, and stop",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a YAML value") from None


def _is_users(error: ValueError) -> bool:
    """Whether the text is meant for the user: our own errors, not a library's ValueError."""
    return type(error).__module__.split(".")[0] in {"cluster", "data"}
