"""What a study may change, and within which bounds."""

from typing import Any

from ray import tune as ray_tune

from cluster.config import Config


def search_space() -> dict[str, Any]:
    """Distributions by dotted field of the configuration.

    gamma and alpha are free of each other: only alpha / (gamma + alpha) decides how much
    contamination is unlearned, while gamma alone sets how hard D presses on G.
    """
    return {
        "objective.gamma": ray_tune.uniform(0.3, 1.0),
        "objective.alpha": ray_tune.uniform(0.0, 1.0),
        "search.feature_weight": ray_tune.uniform(0.0, 1.0),
        "search.steps": ray_tune.qrandint(10, 100, 10),
        "search.step_size": ray_tune.loguniform(0.01, 0.3),
    }


def apply_point(config: Config, point: dict[str, Any], *, run_dir: str) -> Config:
    """The configuration of one trial.

    Args:
        config: Configuration of the study.
        point: Values by dotted field.
        run_dir: Run directory of the trial.

    Raises:
        pydantic.ValidationError: If a value is out of the field's bounds.
    """
    tree = config.model_dump()
    for dotted, value in (point | {"run.dir": run_dir}).items():
        section, _, field = dotted.partition(".")
        tree[section][field] = value
    return Config.model_validate(tree)
