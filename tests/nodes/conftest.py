"""A real ComfyUI for the tests that need one: COMFYUI_DIR names its checkout.

COMFYUI_PYTHON names the Python it runs with (default: this one). It gets its own base folder,
where the only custom nodes are this checkout, `odd_inputs.py` and, if COMFYUI_DIR has it,
VideoHelperSuite.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

START_SECONDS = 120
PAGE_SECONDS = 60
SERVER_FLAGS = ("--cpu", "--listen=127.0.0.1", "--database-url=sqlite:///:memory:")
OTHER_PACKS = ("ComfyUI-VideoHelperSuite",)


ENDINGS = ("execution_success", "execution_interrupted", "execution_error")


# Runs in ComfyUI's Python: writes FILM with random weights to a file that its loader reads.
FILM = """
import sys
from comfy.cli_args import args
args.cpu = True
import torch
from comfy_extras.frame_interpolation_models.film_net import FILMNet
from safetensors.torch import save_file
torch.manual_seed(0)
model = FILMNet()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.02)
save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, sys.argv[1])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One ComfyUI server with its own input, output and model folders.

    Its output folder is a symbolic link, as when outputs go to another disk.
    """

    def __init__(self, code: Path, base: Path, checkout: Path, flags: tuple[str, ...] = ()) -> None:
        self.code, self.base, self.port = code, base, free_port()
        self.flags = flags
        self.url = f"http://127.0.0.1:{self.port}"
        for name in ("input", "disk", "temp", "models/interpolation", "custom_nodes"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "output").symlink_to(base / "disk")
        (base / "custom_nodes" / "ComfyUI-TLBVFI").symlink_to(checkout)
        shutil.copy(checkout / "tests/nodes/odd_inputs.py", base / "custom_nodes")
        for pack in OTHER_PACKS:
            if (code / "custom_nodes" / pack).exists():
                (base / "custom_nodes" / pack).symlink_to(code / "custom_nodes" / pack)
        self.start()

    def start(self) -> None:
        self.log = (self.base / "server.log").open("a")
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        self.process = subprocess.Popen(
            [
                python,
                "main.py",
                *SERVER_FLAGS,
                *self.flags,
                f"--port={self.port}",
                f"--base-directory={self.base}",
            ],
            cwd=self.code,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"ComfyUI did not start:\n{self.text()[-3000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/object_info/SaveImage"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def kill(self) -> None:
        """Kill the server, as `kill -9` does."""
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def text(self) -> str:
        """The server's log."""
        return (self.base / "server.log").read_text(errors="replace")

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def queue(self, prompt: dict, client_id: str = "") -> str:
        """Queue an API prompt, all nodes of which must be valid; returns its id."""
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        status, answer = self.post("/prompt", body)
        assert (status, answer.get("node_errors")) == (200, {}), json.dumps(answer, indent=1)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 120) -> dict:
        """The history entry of a prompt, once it has ended, successfully or not."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        pytest.fail(f"prompt {prompt_id} did not end in {timeout} s:\n{self.text()[-2000:]}")

    def run(self, prompt: dict, timeout: float = 120) -> dict:
        """Outputs by node id of a prompt that must succeed."""
        entry = self.wait(self.queue(prompt), timeout)
        assert entry["status"]["status_str"] == "success", self.message(entry)
        return entry["outputs"]

    def error(self, prompt: dict, timeout: float = 120) -> str:
        """The message with which a prompt fails while it runs."""
        return self.message(self.wait(self.queue(prompt), timeout))

    def refusal(self, prompt: dict) -> list[dict]:
        """The node errors with which a prompt is refused before it runs."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        assert status == 400, answer
        return [e for node in answer["node_errors"].values() for e in node["errors"]]

    def peak_memory(self) -> int:
        """Peak memory of the server so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])

    def cpu_seconds(self) -> float:
        """CPU time of all the server's threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # user and system

    def saved(self, outputs: dict) -> Path:
        """The file that a node shows, from its outputs as `run` returns them."""
        shown = outputs["images"][0]
        return self.base / shown["type"] / shown["subfolder"] / shown["filename"]

    def session(self, session_id: str) -> Path:
        """Folder of a session."""
        return self.base / "output" / "tlbvfi_chunks" / session_id

    def committed(self, session_id: str) -> list[bytes]:
        """Progress lines of the chunks that a session has committed."""
        progress = self.session(session_id) / "progress.jsonl"
        return progress.read_bytes().splitlines() if progress.exists() else []

    def wait_for_chunks(self, session_id: str, count: int, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while len(self.committed(session_id)) < count:
            assert time.monotonic() < deadline, self.text()[-2000:]
            time.sleep(0.01)

    @staticmethod
    def message(entry: dict) -> str:
        messages = dict(entry["status"]["messages"])
        return messages.get("execution_error", {}).get("exception_message", str(list(messages)))


@pytest.fixture(scope="session")
def comfyui(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """A running ComfyUI; skipped where COMFYUI_DIR does not name one."""
    code = os.environ.get("COMFYUI_DIR")
    if not code:
        pytest.skip("COMFYUI_DIR does not name a ComfyUI checkout")
    server = Server(Path(code).resolve(), tmp_path_factory.mktemp("comfyui"), root)
    yield server
    server.stop()


@pytest.fixture
def fresh_comfyui(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """Start more servers, each with its own folders; all are stopped after the test.

    `other_pack`: code of a custom node pack that is loaded along with this one. `flags`: more
    options of the server's command line.
    """
    servers = []

    def start(other_pack: str = "", *, flags: tuple[str, ...] = ()) -> Server:
        code = Path(os.environ["COMFYUI_DIR"]).resolve()
        base = tmp_path_factory.mktemp("comfyui")
        if other_pack:
            (base / "custom_nodes" / "other-pack").mkdir(parents=True)
            (base / "custom_nodes" / "other-pack" / "__init__.py").write_text(other_pack)
        servers.append(Server(code, base, root, flags))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def gray_batch():
    """(prompt nodes g0.., link) for a batch of `count` gray images from dark to bright."""

    def build(count: int, width: int = 64, height: int = 48) -> tuple[dict, list]:
        nodes, link = {}, None
        for i in range(count):
            level = 255 * i // max(count - 1, 1)
            color = level << 16 | level << 8 | level
            inputs = {"width": width, "height": height, "batch_size": 1, "color": color}
            nodes[f"g{i}"] = {"class_type": "EmptyImage", "inputs": inputs}
            if link is not None:
                batch = {"image1": link, "image2": [f"g{i}", 0]}
                nodes[f"b{i}"] = {"class_type": "ImageBatch", "inputs": batch}
            link = [f"b{i}" if i else "g0", 0]
        return nodes, link

    return build


@pytest.fixture(scope="session")
def node():
    """Shorthand for a node of an API prompt."""

    def build(class_type: str, **inputs) -> dict:
        return {"class_type": class_type, "inputs": inputs}

    return build


@pytest.fixture(scope="session")
def clip(comfyui):
    """Make a video in ComfyUI's input folder, return its name. Frame n shows a square at n pixels."""

    def make(
        name: str,
        *,
        frames: int = 12,
        width: int = 64,
        height: int = 48,
        rate: Fraction | int = 24,
        sound: bool = False,
    ) -> str:
        path = comfyui.base / "input" / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            audio = container.add_stream("aac", rate=48000, layout="mono") if sound else None
            for n in range(frames):
                image = np.full((height, width, 3), 40, np.uint8)
                image[height // 3 : height // 2, n % (width - 16) :][:, :16] = 200
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode(None))
            if audio is not None:
                for packet in _tone(audio, float(frames / Fraction(rate))):
                    container.mux(packet)
        return name

    return make


def _tone(stream, seconds: float):
    wave = np.sin(np.arange(int(48000 * seconds)) * 0.06).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    frame.sample_rate = 48000
    yield from stream.encode(frame)
    yield from stream.encode(None)


@pytest.fixture(scope="session")
def pictures():
    """[N, H, W, 3] uint8: the decoded frames of a video file."""

    def decode(path: Path) -> np.ndarray:
        with av.open(str(path)) as container:
            return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])

    return decode


@pytest.fixture
def watch(comfyui):
    """(kinds of messages, texts shown on nodes) that the page gets while a prompt runs.

    `until`: the prompt is canceled when a node shows this text, else it must succeed.
    """
    pytest.importorskip("websockets")
    from websockets.sync.client import connect

    def run(prompt: dict, *, until: str = "") -> tuple[set, list[str]]:
        kinds, texts = set(), []
        ending = "execution_interrupted" if until else "execution_success"
        with connect(f"{comfyui.url.replace('http', 'ws')}/ws?clientId=watcher") as socket:
            flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
            socket.send(json.dumps(flags))
            prompt_id = comfyui.queue(prompt, client_id="watcher")
            while True:
                message = socket.recv(timeout=60)
                if isinstance(message, bytes):
                    kinds.add(int.from_bytes(message[:4], "big"))
                    if message[3] == 3:
                        texts.append(message[8:].decode(errors="replace"))
                        if until and until in texts[-1]:
                            comfyui.post("/interrupt", {"prompt_id": prompt_id})
                    continue
                event = json.loads(message)
                kinds.add(event["type"])
                assert event["type"] not in ENDINGS or event["type"] == ending, event
                if event["type"] == ending and event["data"]["prompt_id"] == prompt_id:
                    return kinds, texts

    return run


class Page:
    """ComfyUI's page in headless Chromium, driven over the DevTools protocol."""

    FLAGS = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        # the page would otherwise wait half a minute for remote servers
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1600,1000",
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        "about:blank",
    )

    def __init__(self, chromium: str, profile: Path) -> None:
        from websockets.sync.client import connect

        self.log = (profile / "chromium.log").open("w+")
        command = [chromium, f"--user-data-dir={profile}", *self.FLAGS]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=subprocess.DEVNULL)
        port = self._debugging_port(profile / "chromium.log")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self._open = ExitStack()
        self.socket = self._open.enter_context(
            connect(tabs[0]["webSocketDebuggerUrl"], max_size=None)
        )
        self.calls = 0

    def _debugging_port(self, log: Path) -> str:
        deadline = time.monotonic() + 20
        while not (found := re.search(r"ws://127\.0\.0\.1:(\d+)", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return found[1]

    def call(self, method: str, **params):
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=120))).get("id") != self.calls:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, code: str):
        """Run the body of an async function in the page and return its result."""
        result = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {code} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, json.dumps(result["exceptionDetails"])[:2000]
        return result["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PAGE_SECONDS
        ready = "window.app?.vueAppReady === true && !!app.graph"
        node = "!!LiteGraph.registered_node_types['TLBVFI_ChunkProcessor']"
        while not self._is(f"{ready} && {node}"):
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.2)

    def _is(self, condition: str) -> bool:
        try:
            return bool(self.js(f"return !!({condition})"))
        except AssertionError:  # the page is still empty
            return False

    def prompt_of(self, graph: dict) -> dict:
        """The prompt that the page makes from a saved graph."""
        return self.js(
            "await app.refreshComboInNodes();"  # as the R key: new files since it was opened
            f"await app.loadGraphData({json.dumps(graph)});"
            "return (await app.graphToPrompt()).output"
        )

    def drop(self, path: Path, kind: str) -> None:
        """Drop a file on the page."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.js(
            f"const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0));"
            f"await app.handleFile(new File([bytes], '{path.name}', {{type: '{kind}'}}))"
        )

    def close(self) -> None:
        self._open.close()
        self.process.terminate()
        self.process.wait(timeout=20)
        self.log.close()


@pytest.fixture(scope="session")
def page(comfyui, tmp_path_factory: pytest.TempPathFactory):
    """ComfyUI's page; skipped where there is no Chromium."""
    pytest.importorskip("websockets")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    if not chromium:
        pytest.skip("Chromium is not installed")
    page = Page(chromium, tmp_path_factory.mktemp("chromium"))
    try:
        page.open(comfyui.url)
        yield page
    finally:
        page.close()


@pytest.fixture(scope="session")
def film_model(comfyui) -> str:
    """File name of FILM with random weights, where ComfyUI's loader finds it."""
    name = "film_net_fp16.safetensors"
    folder = comfyui.base / "models" / "frame_interpolation"
    folder.mkdir(exist_ok=True)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", FILM, str(folder / name)]
    subprocess.run(command, cwd=comfyui.code, check=True, capture_output=True)
    return name
