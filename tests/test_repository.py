"""The repository as a whole: recipes load, links and commands hold, what ships loads, nothing strange is inside."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
import yaml

import dalle
from dalle.__main__ import _parse as parse
from dalle.checkpoints import load
from dalle.checkpoints.build import build_diffusion, build_prior
from dalle.checkpoints.folder_config import read_config
from dalle.checkpoints.model_folder import ModelFolder, folder_hash
from dalle.cli.parser import CommandLine
from dalle.cli.sample import command_line
from dalle.config import apply_overrides, from_dict, read_yaml
from dalle.image_tokenizers import build
from dalle.models.autoregressive_prior import AutoregressivePriorConfig
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.training.init_config import resolve_recipe, with_initial_config
from dalle.training.recipe import (
    CLIPRecipe,
    DALLERecipe,
    DiffusionRecipe,
    ImageTokenizerRecipe,
    PriorRecipe,
    Recipe,
    TextTokenizerRecipe,
    stage_schema,
)

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    str(file.relative_to(ROOT))
    for folder in ("configs", "tokenizers")
    for file in (ROOT / folder).rglob("*.yaml")
    if file.parent.name != "accelerate"  # what its launcher reads: tests/training/distributed/test_fsdp.py
)
SHIPPED = sorted(
    str(file.parent.relative_to(ROOT))
    for folder in ("tokenizers", "models")
    for file in (ROOT / folder).rglob("config.yaml")
    if (file.parent / "model.safetensors").is_file() or (file.parent / "bpe.model").is_file()
)
MEGABYTE = 1_000_000


@cache
def tracked() -> tuple[Path, ...]:
    """Files that git keeps; skips where there is no git."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return tuple(ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file())


@cache
def pages() -> tuple[Path, ...]:
    """The Markdown files of the repository."""
    return tuple(file for file in tracked() if file.suffix == ".md")


# ---- recipes


def parameters(recipe: Recipe) -> int:
    """How many parameters a recipe's model has; 0 for a text tokenizer."""
    with torch.device("meta"):
        if isinstance(recipe, ImageTokenizerRecipe):
            model: torch.nn.Module = build(recipe.model)
        elif isinstance(recipe, CLIPRecipe):
            model = CLIP(recipe.model)
        elif isinstance(recipe, DALLERecipe):
            model = DALLE(recipe.model)
        elif isinstance(recipe, PriorRecipe):
            shape = recipe.model  # an autoregressive one that counts its components on its data may have all
            if isinstance(shape, AutoregressivePriorConfig) and shape.components is None:
                shape = replace(shape, components=shape.embed_dim)
            model = build_prior(shape)
        elif isinstance(recipe, DiffusionRecipe):
            model = build_diffusion(recipe.model)
        else:
            return 0
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_loads_and_builds(path: str) -> None:
    recipe = resolve_recipe(ROOT / path)
    if isinstance(recipe, DALLERecipe) and recipe.model.transformer.depth > 16:  # see the next test
        recipe = replace(recipe, model=replace(recipe.model, transformer=replace(recipe.model.transformer, depth=1)))
    assert parameters(recipe) > 0 or isinstance(recipe, TextTokenizerRecipe)


def test_paper_recipe_has_12_billion_parameters() -> None:
    recipe = resolve_recipe(ROOT / "configs/paper/dalle-12b.yaml")
    assert isinstance(recipe, DALLERecipe)
    assert 12.0e9 < parameters(recipe) < 12.5e9


def test_dependent_recipes_have_matching_shapes() -> None:
    """A recipe names a shipped folder or the run folder of another recipe; vocabularies, grids and sizes must match."""
    recipes = {path: resolve_recipe(ROOT / path) for path in RECIPES}
    made = {str(Path(path).parent): recipe for path, recipe in recipes.items() if path.startswith("tokenizers/")}
    for recipe in recipes.values():
        folder = recipe.dir if isinstance(recipe, TextTokenizerRecipe) else recipe.run.dir
        made.setdefault(f"{folder}/model", recipe)
    compared = 0
    for path, recipe in recipes.items():
        if isinstance(recipe, (CLIPRecipe, DALLERecipe)) and recipe.text_tokenizer in made:
            text = made[recipe.text_tokenizer]
            assert isinstance(text, TextTokenizerRecipe), path
            assert recipe.model.text_vocab == text.model.vocab_size, path
            compared += 1
        if isinstance(recipe, DALLERecipe) and recipe.image_tokenizer in made:
            image = made[recipe.image_tokenizer]
            assert isinstance(image, ImageTokenizerRecipe), path
            with torch.device("meta"):
                tokenizer = build(image.model)
            assert recipe.model.image_vocab == tokenizer.codebook_size, path
            assert tuple(recipe.model.grid) == tuple(tokenizer.grid), path
            if recipe.clip in made:
                clip = made[recipe.clip]
                assert isinstance(clip, CLIPRecipe), path
                assert clip.model.image_size == tokenizer.image_size, path
            compared += 1
        if isinstance(recipe, (PriorRecipe, DiffusionRecipe)) and recipe.clip in made:
            clip = made[recipe.clip]
            assert isinstance(clip, CLIPRecipe), path
            assert recipe.model.embed_dim == clip.model.embed_dim, path
            assert recipe.model.text_width == clip.model.text.width, path
            assert recipe.model.text_length == clip.model.text_length, path
            compared += 1
    assert compared >= 6


def test_recipes_have_distinct_run_folders() -> None:
    folders = []
    for path in RECIPES:
        recipe = resolve_recipe(ROOT / path)
        folders.append(recipe.dir if isinstance(recipe, TextTokenizerRecipe) else recipe.run.dir)
    assert len(set(folders)) == len(folders)
    assert all(folder.parts[0] == "runs" and len(folder.parts) == 2 for folder in folders)


# ---- commands


def check_training(words: list[str], where: str) -> None:
    """A command line of train.py names a recipe that is there, and options that it has."""
    options = [word for word in words if word.startswith("-")]
    assert set(options) <= {"--print-config", "--help", "--traceback"}, where
    given = [word for word in words if not word.startswith("-")]
    if not given or re.fullmatch(r"[A-Z_.]+|runs/[\w-]+/config\.yaml", given[0]):  # CONFIG is any, or that of a run
        return
    recipe = f"configs/{given[0]}.yaml" if f"configs/{given[0]}.yaml" in RECIPES else given[0]  # by its name
    assert recipe in RECIPES, f"{where}: {given[0]}"
    ours = [word for word in given[1:] if not word.startswith("init_from=")]  # in place of a model that is not here
    data = with_initial_config(apply_overrides(read_yaml(ROOT / recipe), ours))
    from_dict(stage_schema(data, where), data, where)


@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_begins_with_the_command_that_runs_it(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    words = shlex.split(text.splitlines()[0])
    assert words[:4] == ["#", "python", "train.py", path]
    for line in re.findall(r"^#\s+(?:python|accelerate|torchrun) .*$", text, flags=re.MULTILINE):
        check_training(shlex.split(line.partition("train.py")[2], comments=True), path)


def check_command(words: list[str], where: str) -> None:
    """A command line of `dalle`, without the files that it names."""
    if words[:1] == ["train"]:
        check_training(words[1:], where)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandLine, "error", lambda parser, message: pytest.fail(f"{where}: {message}"))
        parse(words)


def test_extras_are_installed_from_the_checkout() -> None:
    """An index may have something else under the name of this package."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    texts |= {
        file: file.read_text(encoding="utf-8")
        for file in [*ROOT.glob("dalle/**/*.py"), *ROOT.glob("configs/**/*.yaml")]
    }
    assert [str(file) for file, text in texts.items() if re.search(r"install \W?dalle\b", text)] == []


def test_commands_in_the_docs_parse() -> None:
    """Every command line in a fenced block of a Markdown file: recipes, options and targets exist."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    found = 0
    for page in pages():
        for block in re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL):
            for line in block.replace("\\\n", " ").replace(" && ", "\n").splitlines():
                where = f"{page.relative_to(ROOT)}: {line}"
                words = (
                    shlex.split(line, comments=True)
                    if re.match(r"\$? ?(python|dalle |make|accel|torchrun)", line)
                    else []
                )
                words = words[1:] if words[:1] == ["$"] else words
                words = words[: words.index("&")] if "&" in words else words
                if "train.py" in words:
                    check_training(words[words.index("train.py") + 1 :], where)
                elif words[:2] in (["python", "sample.py"], ["dalle", "sample"]):
                    known = command_line()._option_string_actions
                    options = [word.partition("=")[0] for word in words if word.startswith("--")]
                    assert set(options) <= set(known), where
                elif words[:1] == ["dalle"] and words[1].endswith(":"):  # what it prints
                    continue
                elif words[:3] == ["python", "-m", "dalle"] or words[:1] == ["dalle"]:
                    check_command(words[words.index("dalle") + 1 :], where)
                elif words[:1] == ["make"]:
                    assert {word for word in words[1:] if "=" not in word} <= targets, where
                else:
                    continue
                found += 1
    if (ROOT / "README.md").is_file():
        assert found > 4


# ---- links


def anchors(page: Path) -> set[str]:
    """What a link to a heading of this page looks like."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
    heads = re.findall(r"^#+ +(.+?) *#*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_between_files_resolve() -> None:
    broken = []
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
        links = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)
        links += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
        links += re.findall(r"^\[[^\]]+\]: +(\S+)", text, flags=re.MULTILINE)
        for link in links:
            if re.match(r"[a-z]+:|\.\./\.\./actions/", link):  # http:, mailto:; of GitHub's own pages
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_paper_index_names_existing_code() -> None:
    wrong = []
    last = None
    for code in re.findall(r"`([^`]+)`", (ROOT / "docs/paper_index.md").read_text(encoding="utf-8")):
        path, _, name = code.rpartition(": ")
        if re.fullmatch(r"[\w/]+\.(py|yaml)", path or name):  # a file, perhaps with the first name that is meant in it
            path, name = (path, name) if path else (name, "")
            last = ROOT / path if path.startswith("configs/") else ROOT / "dalle" / path
        if last is None or not last.is_file() or not all(defines(last, part) for part in filter(None, name.split("."))):
            wrong.append(code)
    assert not wrong


def defines(file: Path, name: str) -> bool:
    """Whether a Python file has a class, a function or a field of that name."""
    pattern = rf"^ *(?:(?:def|class) {re.escape(name)}\b|{re.escape(name)}: )"
    return re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


# ---- what is in it


def test_every_file_has_a_docstring() -> None:
    """Before any code; ruff looks at what is in the docstrings of the package."""
    first = re.compile(r'(?:#.*\n|\s)*[rR]?"""\S')
    assert [file for file in tracked() if file.suffix == ".py" and not first.match(file.read_text("utf-8"))] == []


def test_no_machine_paths_or_registry_hosts() -> None:
    folders = "|".join(f"/{name}/" for name in ("work", "root", "home", "Users", "opt"))
    hosts = "|".join(rf"{name}\.{end}" for name, end in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org")))
    unwanted = re.compile(rf"(?<![\w.}}]){folders}|{hosts}".encode())
    found = [
        str(file.relative_to(ROOT))
        for file in tracked()
        if file.suffix not in (".parquet", ".safetensors", ".png", ".model")
        and file.parent != ROOT / "deploy"  # of containers and servers
        and unwanted.search(file.read_bytes())
    ]
    assert not found


def test_shipped_weights_are_small_and_safe() -> None:
    weights = [file for file in tracked() if file.suffix in (".safetensors", ".model")]
    assert sum(file.stat().st_size for file in weights) <= 60 * MEGABYTE
    unsafe = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy"}
    assert not [file for file in tracked() if file.suffix in unsafe]


def test_the_tokenizers_folder_does_not_hide_the_library_of_that_name(tmp_path: Path) -> None:
    assert not list((ROOT / "tokenizers").rglob("*.py"))
    library = tmp_path / "tokenizers" / "__init__.py"
    library.parent.mkdir()
    library.write_text("")
    found = PathFinder.find_spec("tokenizers", [str(ROOT), str(tmp_path)])
    assert found is not None and found.origin == str(library)


@pytest.mark.parametrize("folder", SHIPPED)
def test_shipped_folders_load(folder: str) -> None:
    config = read_config(ROOT / folder)
    read = {
        "text_tokenizer": load.load_text_tokenizer,
        "image_tokenizer": load.load_image_tokenizer,
        "clip": load.load_clip,
        "dalle": load.load_model,
    }[config["stage"]]
    read(ROOT / folder)
    assert len(folder_hash(ROOT / folder)) == 64
    for name in config.get("parts") or {}:
        assert ModelFolder(ROOT / folder).component(name).path.is_dir()
    card = ROOT / folder / "README.md"
    nested = any((parent / "config.yaml").is_file() for parent in (ROOT / folder).parents)
    assert card.is_file() or nested, f"{folder} has no card"


# ---- packaging


def line_of(name: str, pattern: str) -> str:
    found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, name
    return found[1]


def test_version_is_the_same_everywhere() -> None:
    assert line_of("pyproject.toml", r'^version = "(.+)"$') == dalle.__version__
    assert line_of("CITATION.cff", r"^version: (.+)$") == dalle.__version__
    assert line_of("CHANGELOG.md", r"^## \[(\d.+?)\]") == dalle.__version__


def test_list_of_modules_is_up_to_date() -> None:
    written = subprocess.run([sys.executable, "docs/modules.py", "--print"], cwd=ROOT, capture_output=True, text=True)
    assert written.stdout == (ROOT / "docs/modules.md").read_text(encoding="utf-8"), "run python docs/modules.py"


def test_readme_states_the_length_of_the_main_path() -> None:
    said = subprocess.run([sys.executable, "docs/main_path.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert " ".join(said.stdout.split()) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def requirements(text: str) -> set[str]:
    return {re.split(r"[\[<>=;\s]", line.strip())[0].lower() for line in text.splitlines() if line.strip()}


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[\w.]+( ; .+)?$", line) for line in lines)
    assert "torch==2.13.0" in lines
    project = (ROOT / "pyproject.toml").read_text()
    groups = [
        re.search(rf"^{key} = \[(.*?\])$", project, flags=re.M | re.DOTALL) for key in ("dependencies", "dev", "track")
    ]
    wanted = requirements("\n".join(name for group in groups if group for name in re.findall(r'"([^"]+)"', group[1])))
    assert {"torch", "ruff", "tensorboard"} <= wanted
    assert wanted - {"dalle"} <= requirements("\n".join(lines))


def test_citation_has_the_required_keys() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
