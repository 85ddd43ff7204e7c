"""Hooks of the documentation site: links out of docs/, pages of files beside it, and the reference, made of the code.

On GitHub the pages link to files of the repository. Here such a link goes to the API page of a module, or to a page
that shows the file. The three lists of the reference (commands, options of recipes, modules) are those of the code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # of an environment in which another checkout, or none, is installed
    sys.path.insert(0, str(ROOT))

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml", ".c": "c", ".h": "cpp", ".cpp": "cpp"}
_IMAGES = (".png", ".webp", ".svg")
_ORIGINS = {"index.md": "README.md"}  # pages whose text is that of a file elsewhere


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as GitHub makes them, and the API pages in the navigation."""
    config.mdx_configs["toc"]["slugify"] = lambda text, separator: re.sub(r"[^\w\- ]", "", text.lower()).replace(
        " ", separator
    )
    reference = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    reference.append({"Modules": [_page_of(folder) for folder in _packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the files that pages link to, with those that these link to in turn."""
    made = {"index.md": re.sub(r"^\[!\[.*\n", "", _text("README.md"), flags=re.MULTILINE)} | dict(_reference())
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    waiting = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    waiting += [_mirror(files, config, name, InclusionLevel.UNDEFINED) for name in ("CONTRIBUTING.md", "CHANGELOG.md")]
    while waiting:
        page, text = waiting.pop()
        for piece in _FENCED.split(text)[::2]:
            for _, _, target in _LINK.findall(piece):
                found = None if page.startswith("reference/") else _destination(page, target)
                name = found and _repository_path(found[0])
                if (
                    name
                    and files.get_file_from_path(f"repo/{name}") is None
                    and files.get_file_from_path(found[0]) is None
                ):
                    waiting.append(_mirror(files, config, name, InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository as links to pages of the site; a link to a folder is its text."""
    here = page.file.src_uri
    if here.startswith("reference/"):
        return markdown

    def replace(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        found = _destination(here, target)
        if found is None:
            return "" if image else _LINK.sub(replace, text)
        return f"{image}[{text}]({posixpath.relpath(found[0], posixpath.dirname(here) or '.')}{found[1]})"

    pieces = _FENCED.split(markdown)  # what is fenced stands at odd places
    pieces[::2] = [_LINK.sub(replace, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _repository_path(page: str) -> str | None:
    """The file of the repository that a page of `repo/` shows."""
    if not page.startswith("repo/"):
        return None
    name = page.removeprefix("repo/")
    return name if (ROOT / name).is_file() else name.removesuffix(".md")


def _destination(page: str, target: str) -> tuple[str, str] | None:
    """Where a link of a page goes in the site: a page or file, and an anchor; None for a folder."""
    if re.match(r"[a-z]+:|#", target):
        return None
    path, _, anchor = target.partition("#")
    origin = _ORIGINS.get(page) or _repository_path(page) or f"docs/{page}"
    name = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    file = ROOT / name
    suffix = f"#{anchor}" if anchor else ""
    if name == "README.md":
        return "index.md", suffix
    if name.startswith("docs/") and file.suffix != ".py":
        return name.removeprefix("docs/"), suffix
    if name.startswith("dalle/") and (file.is_dir() or file.suffix == ".py"):
        folder = file if file.is_dir() else file.parent
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        anchor = "" if file.stem == "__main__" else f"#{module}"  # what is no module to import is not on the page
        return (_page_of(folder), anchor) if (folder / "__init__.py").is_file() else None
    if not file.is_file():
        return None
    shown = file.suffix in (".md", *_IMAGES)
    return f"repo/{name}" + ("" if shown else ".md"), suffix if file.suffix == ".md" else ""


def _mirror(files: Files, config: MkDocsConfig, name: str, inclusion: InclusionLevel) -> tuple[str, str]:
    """Add a file of the repository: Markdown and images as they are, notebooks and other texts on a page."""
    file, page, text = ROOT / name, f"repo/{name}", ""
    if file.suffix in _IMAGES:
        files.append(File.generated(config, page, abs_src_path=str(file)))
        return page, text
    text = _text(name)
    if file.suffix != ".md":
        page += ".md"
        language = _LANGUAGES.get(file.suffix, "text")
        shown = _notebook(text) if file.suffix == ".ipynb" else f"```{language}\n{text.rstrip()}\n```"
        text = f"# {name}\n\n{shown}\n"
    files.append(File.generated(config, page, content=text, inclusion=inclusion))
    return page, text


def _notebook(text: str) -> str:
    """The cells of a notebook, without their results."""
    cells = json.loads(text)["cells"]
    shown = ("".join(cell["source"]) for cell in cells)
    return "\n\n".join(
        source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for cell, source in zip(cells, shown, strict=True)
    )


# ---- reference


def _reference() -> Iterator[tuple[str, str]]:
    yield "reference/cli.md", _commands()
    yield "reference/config.md", _recipes()
    yield "reference/public.md", _public()
    for folder in _packages():
        yield _page_of(folder), _api(folder)


def _packages() -> list[Path]:
    return [ROOT / "dalle", *sorted(file.parent for file in (ROOT / "dalle").rglob("*/__init__.py"))]


def _page_of(folder: Path) -> str:
    return f"reference/api/{folder.relative_to(ROOT).as_posix().replace('/', '.')}.md"


def _api(folder: Path) -> str:
    package = folder.relative_to(ROOT).as_posix().replace("/", ".")
    modules = [file.stem for file in sorted(folder.glob("*.py")) if file.stem not in ("__init__", "__main__")]
    names = [package, *(f"{package}.{module}" for module in modules)]
    # A package's own names are those of its modules, which are shown there.
    blocks = [
        f"::: {name}" + ("\n    options: {members: false, show_root_heading: false}" if name == package else "")
        for name in names
    ]
    return f"# {package}\n\n" + "\n\n".join(blocks) + "\n"


def _public() -> str:
    dalle = importlib.import_module("dalle")
    blocks = [f"::: {dalle._HOMES[name]}.{name}" for name in dalle.__all__ if name in dalle._HOMES]
    head = "# Public names\n\nWhat `import dalle` offers; each is loaded when it is first asked for.\n\n"
    return head + "\n\n".join(blocks) + "\n"


def _commands() -> str:
    """Every command with its arguments, from the parsers themselves."""
    main, sample, train = map(importlib.import_module, ("dalle.__main__", "dalle.cli.sample", "dalle.cli.train"))
    parsers = {"sample": sample.command_line("dalle sample"), "train": train.command_line("dalle train")}
    action = next(a for a in main._parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
    text = [
        "# Commands",
        "",
        "`dalle COMMAND`, or `python -m dalle COMMAND` in a checkout, where `python sample.py` and",
        "`python train.py` are the first two. Made of the commands' own parsers.",
        "",
    ]
    for name, parser in (parsers | {name: p for name, p in action.choices.items() if name not in parsers}).items():
        text += [f"## dalle {name}", "", f"{helps[name][:1].upper()}{helps[name][1:]}.", ""]
        text += ["```", " ".join([f"dalle {name}", *_positional(parser), "[options]"]), "```", ""]
        text += ["| argument | meaning |", "|---|---|"]
        text += [_argument(parser, entry) for entry in parser._actions if entry.dest != "help"] + [""]
    return "\n".join(text)


def _positional(parser: argparse.ArgumentParser) -> list[str]:
    formatter = parser._get_formatter()
    return [formatter._format_args(entry, entry.metavar or entry.dest) for entry in parser._get_positional_actions()]


def _argument(parser: argparse.ArgumentParser, entry: argparse.Action) -> str:
    formatter = parser._get_formatter()
    names = formatter._format_action_invocation(entry)
    meaning = formatter._expand_help(entry) if entry.help else ""
    return f"| `{_cell(names)}` | {_cell(meaning)} |"


def _recipes() -> str:
    """Every option of every stage, from the fields of the recipes."""
    config, recipe = importlib.import_module("dalle.config"), importlib.import_module("dalle.training.recipe")
    text = [
        "# Recipes",
        "",
        "Every option of a YAML for `dalle train`, by stage; any of them can be changed as `key.path=value`.",
        "Made of the recipes' own fields, as `dalle train RECIPE --help` is.",
        "",
    ]
    for stage, schema in recipe.STAGES.items():
        text += [f"## stage: {stage}", "", "| option | type and default | meaning |", "|---|---|---|"]
        text += [
            f"| `{name.partition(' ')[0]}` {name.partition(' ')[2]} | {_cell(kind)} | {_cell(meaning)} |"
            for name, kind, meaning in config.option_rows(schema, {}, "")
        ]
        text.append("")
    return "\n".join(text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
