"""`tlbvfi comfy run` and `tlbvfi comfy rewrite`: from a ComfyUI prompt to a smooth video."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...encoding.text import printable
from ..methods import METHODS, WITHOUT_WEIGHTS
from .arguments import Commands, named_path
from .interpolate import STDOUT, add_job_options, job_config, method_config, run_interpolate
from .show import say

if TYPE_CHECKING:
    from ..client import ServerEvent
    from ..generation import Generation

DEFAULT_SERVER = "http://127.0.0.1:8188"


def add_parsers(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    comfy = subparsers.add_parser("comfy", help="work with a running ComfyUI, and its workflows")
    commands = comfy.add_subparsers(dest="comfy_command", required=True, metavar="COMMAND")
    _add_run(commands, shared)
    _add_rewrite(commands, shared)


def _add_run(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "run",
        parents=[shared],
        help="generate frames on a server, interpolate them and encode once",
        description="Queue PROMPT on a running ComfyUI, fetch its frames and interpolate them into "
        "OUTPUT. The same command again resumes, both on the server and here.",
    )
    parser.add_argument(
        "prompt",
        metavar="PROMPT.json",
        type=named_path,
        help="workflow exported with File > Export (API)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=named_path,
        required=True,
        metavar="OUTPUT",
        help="video file to write; - writes an mp4 to standard output",
    )
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server", default=DEFAULT_SERVER, metavar="URL", help=f"default {DEFAULT_SERVER}"
    )
    group.add_argument("--node", metavar="ID", help="node whose images are the frames")
    group.add_argument(
        "--timeout", type=float, metavar="S", help="limit for the generation (default: no limit)"
    )
    group.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="S",
        help="how long to retry if the server is lost (default 120)",
    )
    group.add_argument(
        "--comfy-output",
        type=named_path,
        metavar="DIR",
        help="ComfyUI's output folder on this machine: frames are linked, not downloaded",
    )
    group.add_argument("--again", action="store_true", help="generate again, even if frames exist")
    group.add_argument(
        "--discard-frames", action="store_true", help="remove the fetched frames once encoded"
    )
    add_job_options(parser)
    parser.add_argument(
        "--interpolate",
        dest="method",
        choices=METHODS,
        default=argparse.SUPPRESS,
        help="same as --method",
    )
    parser.set_defaults(run=run_comfy)


def _add_rewrite(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "rewrite",
        parents=[shared],
        help="make a workflow keep its frames, or end in our nodes",
        description="Replace the nodes of WORKFLOW that save a video, and list what was changed.",
    )
    parser.add_argument(
        "workflow", metavar="WORKFLOW.json", type=named_path, help="UI or API format"
    )
    parser.add_argument(
        "--to",
        choices=("saveimage", "tlbvfi"),
        default="saveimage",
        help="saveimage keeps the frames, tlbvfi interpolates in ComfyUI (default saveimage)",
    )
    parser.add_argument(
        "--model-name", default="flow", help="model_name of our node (default flow: needs no model)"
    )
    parser.add_argument(
        "-o", "--output", type=named_path, metavar="OUT.json", help="default: standard output"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json")
    parser.set_defaults(run=run_rewrite)


def run_rewrite(arguments: argparse.Namespace) -> int:
    """Write the rewritten workflow; list the changes on stderr, or with --json on stdout."""
    from ...encoding.durable import new_file
    from ..rewrite import rewrite
    from ..workflow import read_workflow

    output = arguments.output
    result = rewrite(
        read_workflow(arguments.workflow), to=arguments.to, model_name=arguments.model_name
    )
    text = json.dumps(result.workflow, indent=2, ensure_ascii=output is None)
    if output is not None:
        with new_file(output, overwrite=arguments.overwrite) as part:
            part.write_text(text, encoding="utf-8", errors="replace")  # lone surrogates
    if arguments.json:
        told = {"changes": result.changes, "output": str(output) if output else None}
        print(json.dumps(told if output else {**told, "workflow": result.workflow}))
        return 0
    for change in result.changes:
        print(printable(change), file=sys.stderr)
    if output is None:
        print(text)
    return 0


def run_comfy(arguments: argparse.Namespace) -> int:
    """Generate, fetch, interpolate and encode; steps that are already done are skipped."""
    from ..generation import discard

    prompt, node = _prepare(arguments)
    _check_settings(arguments)
    to_stdout = arguments.output == STDOUT
    if "resuming" in arguments:  # the session is made of the frames beside it
        arguments.root, arguments.again = arguments.resuming[1], False
    elif arguments.root is None:
        arguments.root = (Path() if to_stdout else arguments.output.parent) / "output"
    try:
        generation = _frames(arguments, prompt, node)
    except KeyboardInterrupt:
        say("interrupted; what is queued continues at the server, and the same command fetches it.")
        return 130
    say(_summary(generation), quiet=arguments.json)
    folder = generation.folder.parent
    if to_stdout:
        arguments.output, arguments.json = folder / "result.mp4", False
    arguments.input = str(generation.folder)
    tags = {"prompt": json.dumps(prompt)}
    code = run_interpolate(arguments, sound=generation.sound, metadata=tags)
    if code == 0 and to_stdout:
        _pour(arguments.output)
    if code == 0 and arguments.discard_frames:
        discard(folder)
    return code


def _frames(arguments: argparse.Namespace, prompt: dict[str, Any], node: str) -> Generation:
    """The frames of the prompt, in a folder below the root."""
    from ..comfy_http import Server, server_url
    from ..generation import collect, generation_folder, is_collected

    server = Server(
        url=server_url(arguments.server),
        lost_seconds=arguments.patience,
        total_seconds=arguments.timeout,
    )
    folder = generation_folder(arguments.root, server, prompt, node)
    if arguments.again or not is_collected(folder):
        _check_output(arguments)
    with _ServerBar(quiet=arguments.json) as show:
        return collect(
            server,
            prompt,
            folder,
            node=node,
            again=arguments.again,
            output_folder=arguments.comfy_output,
            on_event=show,
        )


def _prepare(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The prompt to queue, and the node that keeps its frames; sets --input-fps if it is known."""
    from ..errors import SettingsError, WorkflowError
    from ..generation import frames_node, keeps_frames
    from ..rewrite import rewrite, saves_video
    from ..workflow import api_nodes, is_api_format, read_workflow

    workflow = read_workflow(arguments.prompt)
    if not is_api_format(workflow):
        raise WorkflowError(
            f"{arguments.prompt} is in the page's format, which a server cannot run: use File > "
            "Export (API)."
        )
    prompt, rates = api_nodes(workflow), {}
    if not keeps_frames(prompt) and arguments.node not in prompt and saves_video(workflow):
        rewritten = rewrite(workflow, to="saveimage")
        prompt = api_nodes(rewritten.workflow)
        rates = {str(kept.node): kept.rate for kept in rewritten.frames}
        for change in rewritten.changes:
            say(change, quiet=arguments.json)
    node = frames_node(prompt, arguments.node)
    rate: Fraction | None = rates.get(node)
    if arguments.input_fps is None and rate is None:
        raise SettingsError(
            f"{arguments.prompt} does not state the rate of the frames: add --input-fps, such as "
            "--input-fps 16."
        )
    arguments.input_fps = arguments.input_fps or str(rate)
    return prompt, node


def _check_settings(arguments: argparse.Namespace) -> None:
    """Raise now for a mistake that would otherwise show only after hours of generating."""
    from ..models import find_model
    from ..timeline import parse_rate

    parse_rate(arguments.input_fps)
    job_config(arguments)
    method = method_config(arguments)
    if method.name not in WITHOUT_WEIGHTS:
        find_model(method.name, path=method.model)


def _check_output(arguments: argparse.Namespace) -> None:
    """Raise now for an output that would otherwise be refused only after hours of generating."""
    from ...encoding.delivery import output_path, plan_route
    from ...encoding.errors import OutputError
    from ...encoding.profiles import PictureFacts
    from ...encoding.sequence import image_pattern, is_image

    to_stdout = arguments.output == STDOUT
    output = Path("-.mp4") if to_stdout else output_path(str(arguments.output), arguments.codec)
    there = image_pattern(output).found() if is_image(output.suffix) else output.exists()
    if there and not (to_stdout or arguments.overwrite):
        raise OutputError(
            f"{output} exists and was not made from frames that are still here: choose another name, "
            "or --overwrite to replace it."
        )
    config = job_config(arguments)
    usual = PictureFacts(width=512, height=512, pix_fmt="rgb24")
    plan_route(output.suffix, config.encoder, usual, mezzanine=config.mezzanine)


def _summary(generation: Generation) -> str:
    where = "found again in" if generation.was_there else "in"
    sound = " and their sound" if generation.sound else ""
    return f"{generation.frames} frames{sound} {where} {generation.folder}"


def _pour(path: Path) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    path.unlink()


class _ServerBar:
    """Shows the server's progress on stderr; a context manager, called with each event."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar = tqdm(
            bar_format="{desc} [{elapsed}]", file=sys.stderr, leave=False, disable=quiet
        )

    def __enter__(self) -> _ServerBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, event: ServerEvent) -> None:
        from ..client import NodeProgress, Queued

        if isinstance(event, NodeProgress):
            steps = f" {event.value}/{event.maximum}" if event.maximum else ""
            self._bar.set_description_str(event.title + steps)
        elif isinstance(event, Queued):
            self._bar.set_description_str(f"number {event.position} in the queue")
        else:
            say(f"{event.reason} Trying again.", quiet=self._bar.disable)
