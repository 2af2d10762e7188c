"""Files of settings, before they are checked: read, and laid one over the other."""

from typing import Any

import yaml

from cluster.errors import UserError
from data.errors import DataError
from data.store import Store


class _EachNameOnce(yaml.SafeLoader):
    """Refuses a mapping that has a name twice, of which YAML would keep the last alone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> dict[str, Any]:
    """The sections of a file.

    Raises:
        UserError: If it cannot be read or is no such file.
    """
    folder, slash, name = path.rpartition("/")
    try:
        tree = yaml.load(Store(folder or slash or ".").read_bytes(name), _EachNameOnce)
    except DataError as error:
        raise UserError(f"--config {path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict | None):
        raise UserError(
            f"--config {path} must hold sections such as `objective:`, not {type(tree).__name__}"
        )
    return tree or {}


def merged(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Fields of a section, the new ones before the old; `at` of a schedule is merged likewise."""
    own, given = base.get("at"), new.get("at")
    if isinstance(own, dict) and isinstance(given, dict):
        old = {str(side): plan for side, plan in own.items()}
        added = {
            str(side): old[str(side)] | plan
            if isinstance(plan, dict) and isinstance(old.get(str(side)), dict)
            else plan
            for side, plan in given.items()
        }
        new = new | {"at": old | added}
    return base | new
