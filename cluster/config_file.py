"""Files of settings, before they are checked: read, and laid one over the other."""

from typing import Any

import yaml

from cluster.errors import UserError
from data.errors import DataError
from data.store import Store


class _EachNameOnce(yaml.SafeLoader):
    """Refuses a mapping that has a name twice, of which YAML would keep the last alone."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice", key.start_mark
                )
        return node


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
    """Fields of a section, the new ones before the old.

    `at` of a schedule is merged likewise, for each resolution; an empty one has none.
    """
    own, given = base.get("at"), new.get("at")
    if isinstance(own, dict) and isinstance(given, dict) and given:
        old, added = _by_number(own), _by_number(given)
        for side, plan in added.items():
            if isinstance(plan, dict) and isinstance(old.get(side), dict):
                added[side] = old[side] | plan
        new = new | {"at": old | added}
    return base | new


def _by_number(plans: dict[Any, Any]) -> dict[Any, Any]:
    # JSON has no numbers as keys.
    return {int(side) if str(side).isdecimal() else side: plan for side, plan in plans.items()}
