"""YAML -> a `Recipe`: inheritance, overrides on the command line, and errors that name the key."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config import Recipe
from trainer.errors import RunError

Tree = dict[str, Any]

SHIPPED = Path(__file__).parents[1] / "configs"
"""The recipes that come with the package, in a checkout and where it is installed."""
SUFFIX = ".yaml"


class _Loader(yaml.SafeLoader):
    """YAML with `1e-4` read as a number, as everyone means it, and with a key given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, the recipes it extends, and overrides, of which the later one wins.

    An override is `key=value` with a dotted key, or a recipe, whose keys are laid over. `path` and the latter are
    files, or names of shipped ones, such as `pretrain/cc12m`. Raises `RunError`, naming the key, the value
    and the nearest valid key.
    """
    tree = _read(_find(path), ())
    for override in overrides:
        part = _find(Path(override))
        if "=" not in override and part.suffix == SUFFIX:
            tree = _merge(tree, _read(part, ()))
        else:
            _override(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RunError(f"{path}: {_explain(error)}") from None


def shipped_recipes() -> Iterator[tuple[str, str]]:
    """The name of every recipe that comes with the package, and the first sentence of its first comment."""
    for path in sorted(SHIPPED.rglob(f"*{SUFFIX}")):
        comment = path.read_text(encoding="utf-8").partition("\n#\n")[0]
        lines = [line.removeprefix("#").strip() for line in comment.splitlines() if line.startswith("#")]
        yield path.relative_to(SHIPPED).with_suffix("").as_posix(), " ".join(lines).partition(". ")[0].rstrip(".")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def run_folder(recipe: Recipe) -> Path:
    """`run.dir`. Raises `RunError` where it is not given."""
    if not recipe.run.dir:
        raise RunError("run.dir: not given; add run.dir=FOLDER, where the run is written and resumed")
    return Path(recipe.run.dir)


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Nested settings -> {"optimizer.lr": 0.0005, ...}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _find(path: Path) -> Path:
    """The file of that name, else the shipped recipe of that name, else the path as it is."""
    shipped = SHIPPED / path.with_name(f"{path.name}{SUFFIX}") if path.name else path
    return path if path.is_file() or not shipped.is_file() else shipped


def _read(path: Path, children: tuple[Path, ...]) -> Tree:
    if path.resolve() in map(Path.resolve, children):
        raise RunError(f"{children[-1]}: extends {path}, which extends it in turn")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        whose = f" (extended by {children[-1]})" if children else ""
        raise RunError(f"{path}: no such recipe{whose}; those that come with it: itm recipe --list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not a recipe: {error}") from None
    except yaml.YAMLError as error:
        raise RunError(f"{path}: not valid YAML{yaml_problem(error)}") from None
    if not isinstance(tree, dict):
        raise RunError(f"{path}: a recipe is a mapping of sections, found {type(tree).__name__}")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise RunError(f"{path}: extends={base!r}: give one file name, relative to this file")
    return _merge(_read((path.parent / base), (*children, path)), tree)


def _merge(base: Tree, over: Tree) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _override(tree: Tree, text: str) -> None:
    key, equals, value = text.partition("=")
    near = difflib.get_close_matches(text, [name for name, _ in shipped_recipes()], 1)
    if not equals and (near or "/" in text):
        nearest = f"nearest: {near[0]}; " if near else ""
        raise RunError(f"override {text!r}: no such recipe; {nearest}those that come with it: itm recipe --list")
    if not equals or not key:
        raise RunError(f"override {text!r}: write key=value, such as optimizer.lr=1e-4, or name a recipe")
    *sections, name = key.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise RunError(f"override {text!r}: {section} is a value, not a section")
        tree = below
    try:
        tree[name] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise RunError(f"override {text!r}: the value is not valid YAML{yaml_problem(error)}") from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """Where something is no YAML and why, to go on a line after what it is."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        context = f" {error.context}" if error.context else ""
        return f", line {mark.line + 1}, column {mark.column + 1}: {error.problem}{context}"
    return f": {str(error).splitlines()[0]}"


def _explain(error: ValidationError) -> str:
    # data.train may also be a path, which what is wrong in a list does not concern
    errors = [one for one in error.errors() if one["loc"] != ("data", "train", "str")]
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"] if part != "list[PartConfig]")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        key, value = next(iter(flatten({key: first["input"]}).items()), (key, {}))
        return f"{key}={value!r}: no such key{_nearest(key)}{more}"
    if first["type"] == "missing":
        return f"{key}: not given{more}"
    if first["type"] == "model_type":
        # what has no keys of its own in a recipe is a part of data.train
        inner = next((known for known in recipe_keys() if known.startswith(f"{key}.")), f"{key}.path")
        return f"{key}={first['input']!r}: should be a section with keys, such as {inner}{more}"
    if first["type"] == "value_error":
        inner = str(first["ctx"]["error"])
        return f"{key}.{inner}{more}" if key else f"{inner}{more}"
    message = first["msg"].replace("Input should be ", "should be ")
    return f"{key}={first['input']!r}: {message}{more}"


def _nearest(key: str) -> str:
    keys = recipe_keys()
    same_name = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    # the right name in a wrong section is nearer than all but a slip of the pen
    near = difflib.get_close_matches(key, keys, 1, 0.8) or difflib.get_close_matches(key, same_name or keys, 1, 0)
    return f"; nearest: {near[0]}"


def recipe_keys(config: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """Every valid dotted key with its description."""
    keys: dict[str, str] = {}
    for name, field in config.model_fields.items():
        kind = field.annotation
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        nested = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        keys |= (
            recipe_keys(nested[0], f"{prefix}{name}.") if nested else {f"{prefix}{name}": field.description or ""}
        )
    return keys
