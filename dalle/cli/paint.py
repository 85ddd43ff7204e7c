"""python -m dalle paint: optimize an image until CLIP finds that it fits a prompt (VQGAN+CLIP); also as a video."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle import __version__
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.apps.vqgan_clip.prompts import describe, parse_text
from dalle.cli.parser import add_options
from dalle.cli.streams import utf8_argument
from dalle.config import descriptions

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.apps.vqgan_clip.optimize import Painter

# Of this command, not of `PaintOptions`
_COMMAND_OPTIONS = ("resume", "video", "fps", "save_every", "preview_every", "out", "device", "json")


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser(
        "paint", help="paint a prompt: optimize an image until CLIP finds that it fits the prompt"
    )
    command.add_argument(
        "prompt",
        nargs="?",
        type=utf8_argument,
        default=argparse.SUPPRESS,
        metavar="PROMPT",
        help=descriptions(PaintOptions)["prompt"],
    )
    add_options(command, PaintOptions, skip=("prompt",))
    command.add_argument("--resume", type=Path, metavar="STATE", help="state.safetensors to continue, or its folder")
    command.add_argument("--video", type=Path, metavar="FILE", help="write a video of the steps: .mp4, .gif or .webp")
    command.add_argument("--fps", type=int, default=24, help="frames per second of the video (default: %(default)s)")
    command.add_argument("--save-every", type=int, metavar="STEPS", help="save image and state every so many steps")
    command.add_argument(
        "--preview-every",
        type=int,
        default=10,
        metavar="STEPS",
        help="update image.png every so many steps (%(default)s)",
    )
    command.add_argument(
        "--out", type=Path, default=Path("outputs"), help="parent of the new output folder (default: %(default)s)"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON: image, state, steps, losses, seconds")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.vqgan_clip.api import load_painter
    from dalle.cli.interrupt import SignalHandler
    from dalle.cli.outputs import slug
    from dalle.files import check_file, check_folder
    from dalle.images.video import check_video

    for name in ("fps", "save_every", "preview_every"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}: give 1 or more")
    check_folder(args.out)
    options, state = _options(args)
    if args.video is not None:
        check_video(args.video)
        check_file(args.video, "--video", _input_files(options))
    painter = load_painter(options, args.device, state)
    if painter.step >= options.num_steps:
        raise ValueError(f"{args.resume} has done all {painter.step} steps: give more with --steps")
    parsed = describe(parse_text(options.prompt)) if options.prompt.strip() else None
    if parsed is not None:
        print(f"dalle paint: read as {parsed}", file=sys.stderr)
    run = _PaintingFiles(painter, f"{slug(options.prompt)}-{options.seed}", args)
    start, metrics, first = time.perf_counter(), {}, painter.step
    pause = 0.1 if sys.stderr.isatty() else 10  # a log file keeps every refresh of the bar
    with (
        SignalHandler() as interrupt,
        tqdm(
            total=options.num_steps,
            initial=first,
            desc="painting",
            unit=" steps",
            dynamic_ncols=True,
            mininterval=pause,
        ) as bar,
    ):
        for metrics in painter.run():
            bar.set_postfix({name: f"{value:.3f}" for name, value in metrics.items()}, refresh=False)
            bar.update()
            run.after_step()
            # Between steps, so that the state that is saved below is whole
            if interrupt.signal is not None:
                break
    run.finish()
    if args.json:
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps(run.paths() | {"steps": painter.step, "losses": metrics, "seconds": seconds}))
    if painter.step < options.num_steps:
        command = f"python -m dalle paint --resume {shlex.quote(str(run.folder))}"
        print(
            f"dalle paint: stopped at step {painter.step} of {options.num_steps}; continue with: {command}",
            file=sys.stderr,
        )
        raise SystemExit(interrupt.code)
    if not args.json:
        print(run.folder / "image.png")


def _options(args: argparse.Namespace) -> tuple[PaintOptions, Any]:
    """Options and state to start from: those of --resume or the defaults, overridden by the command line."""
    from dalle.apps.vqgan_clip.state import override_options, read_state
    from dalle.config import from_dict

    given = {name: value for name, value in vars(args).items() if name not in (*_COMMAND_OPTIONS, "run", "command")}
    if args.resume is None:
        return from_dict(PaintOptions, given, "command line"), None
    state = read_state(args.resume / "state.safetensors" if args.resume.is_dir() else args.resume)
    return override_options(state, given), state


class _PaintingFiles:
    """Writes the files of one painting: image.png, state.safetensors, frames and a video.

    Args:
        painter: what paints.
        name: name of the folder of the files, in `args.out`.
        args: the command line.
    """

    def __init__(self, painter: Painter, name: str, args: argparse.Namespace) -> None:
        self.painter, self.name, self.args = painter, name, args
        self.texts = self._texts()
        if args.video is not None:
            self._frame()  # before the first step

    @cached_property
    def folder(self) -> Path:
        """The folder of the files. It is created with the first one: before that, nothing is left at an interrupt."""
        from dalle.cli.outputs import new_folder

        return new_folder(self.args.out, self.name)

    def after_step(self) -> None:
        """Write the files that are due after a step."""
        step, options = self.painter.step, self.painter.options
        if self.args.video is not None and step % options.frame_every == 0:
            self._frame()
        if self.args.save_every is not None and step % self.args.save_every == 0:
            self._image(f"step-{step:05d}.png")
            self._state()
        if step % self.args.preview_every == 0:
            self._image("image.png")

    def finish(self) -> None:
        """Write the final image and state, and encode the video."""
        from dalle.images.read import read_image
        from dalle.images.video import write_video

        self._image("image.png")
        self._state()
        if self.args.video is not None:
            # One by one: they may not fit in memory together
            frames = (read_image(file) for file in sorted((self.folder / "frames").glob("*.png")))
            write_video(frames, self.args.video, self.args.fps)

    def paths(self) -> dict[str, str]:
        """Paths of the output files, by kind."""
        paths = {"image": str(self.folder / "image.png"), "state": str(self.folder / "state.safetensors")}
        return paths if self.args.video is None else paths | {"video": str(self.args.video)}

    def _state(self) -> None:
        from dalle.apps.vqgan_clip.state import save_state

        save_state(self.painter, self.folder / "state.safetensors")

    def _frame(self) -> None:
        (self.folder / "frames").mkdir(exist_ok=True)
        self._image(f"frames/{self.painter.step:06d}.png")

    def _image(self, name: str) -> None:
        from dalle.images.png import write_png
        from dalle.images.transforms import to_image

        image = to_image(self.painter.image())
        write_png(image, self.folder / name, self.texts | {"step": str(self.painter.step)})
        self.args.kept = f"what was written before is in {self.folder}"  # for the line of a command that is broken off

    def _texts(self) -> dict[str, str]:
        """PNG metadata: everything that is needed to paint the same image again."""
        from dalle.cli.outputs import file_record
        from dalle.config import to_dict

        options = self.painter.options
        files = [path for path in _input_files(options) if path.is_file()]
        return {
            "prompt": options.prompt,
            "seed": str(options.seed),
            "options": json.dumps(to_dict(options), ensure_ascii=False),
            "files": json.dumps([file_record(file) for file in files], ensure_ascii=False),
            "models": json.dumps(self.painter.models),
            "command": _command(options),
            "Software": f"dalle {__version__}",
        }


def _input_files(options: PaintOptions) -> list[Path]:
    """The images that a painting starts from, or that are its prompts."""
    from dalle.apps.vqgan_clip.prompts import parse_images

    prompts = [Path(prompt.content) for prompt in parse_images(options.image_prompt)]
    return [path for path in (options.init, options.mask, *prompts) if path is not None]


def _command(options: PaintOptions) -> str:
    """The command line that paints the same image, with all options that differ from the defaults."""
    from dalle.config import to_dict

    words = ["python", "-m", "dalle", "paint", options.prompt]
    given, usual = to_dict(options), to_dict(PaintOptions())
    for name, value in given.items():
        if name != "prompt" and value != usual[name]:
            # A list is an option that is given several times
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{name.replace('_', '-')}", str(item)]
    return shlex.join(words)
