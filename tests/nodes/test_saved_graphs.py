"""Reading graphs of older packs: the pure part of the front end, run in node.js."""

import json
import shutil
import subprocess

import pytest

V2 = {
    "required": {"prev_frame": ["IMAGE"], "next_frame": ["IMAGE"], "model_name": [["a.pth"], {}]},
    "optional": {
        "times_to_interpolate": ["INT", {"default": 0}],
        "enable_tf32": ["BOOLEAN", {"default": True}],
        "sample_steps": ["INT", {"default": 10}],
        "flow_scale": ["FLOAT", {"default": 0.5}],
        "tile_size": ["INT", {"default": 0}],
        "cpu_offload": ["BOOLEAN", {"default": True}],
        "gpu_id": ["INT", {"default": 0}],
        "seed": ["INT", {"default": 7}],
        "model": ["TLBVFI_MODEL", {}],
    },
}
CHUNKS = {
    "required": {
        "images": ["IMAGE,VIDEO", {}],
        "fps": ["FLOAT,INT", {"default": 30.0, "widgetType": "FLOAT"}],
        "codec": ["COMBO", {"options": ["libx264", "auto"], "default": "auto"}],
        "bitrate": ["STRING", {"default": "50M"}],
        "trigger": ["INT", {"forceInput": True}],
    },
    "optional": {"session_id": ["STRING", {"default": ""}], "crf": ["INT", {"default": 18}]},
}
DEFINITIONS = {
    "TLBVFI_Interpolator_V2": {"input": V2},
    "TLBVFI_ChunkProcessor": {"input": CHUNKS},
    "TLBVFI_VideoConcatenator": {
        "input": {"required": {"session_id": ["STRING", {"default": ""}]}}
    },
    "SaveImage": {
        "input": {
            "required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "C"}]}
        },
        "python_module": "nodes",
    },
    "Other": {"input": {"required": {"x": ["INT", {"default": 1}]}}},
}


@pytest.fixture(scope="module")
def read(root):
    """Run the hook on a graph and return the result."""
    if not shutil.which("node"):
        pytest.skip("node.js is not installed")
    script = (
        f"import {{ readSavedGraph }} from {json.dumps((root / 'web/saved_graphs.js').as_uri())};"
        "const [graph, definitions] = JSON.parse(process.argv[1]);"
        "readSavedGraph(graph, definitions); console.log(JSON.stringify(graph));"
    )

    def run(graph: dict, more_definitions: dict | None = None) -> dict:
        command = ["node", "--no-warnings", "--input-type=module", "-e", script]
        argument = json.dumps([graph, DEFINITIONS | (more_definitions or {})])
        done = subprocess.run([*command, argument], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    return run


def one(node_type: str, values) -> dict:
    return {"nodes": [{"id": 1, "type": node_type, "widgets_values": values}]}


def values_of(graph: dict):
    return graph["nodes"][0]["widgets_values"]


def test_values_by_name_take_their_places_and_missing_ones_their_defaults(read):
    saved = {"gpu_id": 1, "model_name": "a.pth", "times_to_interpolate": 2, "gone": 5}
    expected = ["a.pth", 2, True, 10, 0.5, 0, True, 1, 7]
    assert values_of(read(one("TLBVFI_Interpolator_V2", saved))) == expected


def test_seven_values_of_the_first_release_leave_tile_size_a_number(read):
    saved = ["a.pth", 1, True, 20, 0.5, False, 0]
    expected = ["a.pth", 1, True, 20, 0.5, 0, False, 0, 7]
    assert values_of(read(one("TLBVFI_Interpolator_V2", saved))) == expected


def test_eight_values_stay_where_they_are_and_new_inputs_take_their_defaults(read):
    saved = ["a.pth", 1, True, 20, 0.5, 512, False, 0]
    assert values_of(read(one("TLBVFI_Interpolator_V2", saved))) == [*saved, 7]


def test_a_saved_crf_moves_to_its_own_input_and_bitrate_is_empty(read):
    saved = {"fps": 60, "codec": "libx264", "crf": 23, "session_id": "s"}
    expected = [60, "libx264", "", "s", 23]
    assert values_of(read(one("TLBVFI_ChunkProcessor", saved))) == expected


def test_a_crf_in_the_place_of_the_bitrate_moves_too(read):
    assert values_of(read(one("TLBVFI_ChunkProcessor", [60, "libx264", 23, "s"]))) == [
        60,
        "libx264",
        "",
        "s",
        23,
    ]


def test_a_saved_bitrate_stays(read):
    saved = {"fps": 60, "codec": "libx264", "bitrate": "20M", "session_id": ""}
    assert values_of(read(one("TLBVFI_ChunkProcessor", saved)))[2] == "20M"


def test_the_concatenator_without_its_prefix_is_ours_beside_another_node_of_ours(read):
    saved = one("VideoConcatenator", {"session_id": "abc"})
    saved["nodes"].append({"id": 2, "type": "TLBVFI_ChunkProcessor"})
    graph = read(saved)
    assert graph["nodes"][0]["type"] == "TLBVFI_VideoConcatenator"
    assert values_of(graph) == ["abc"]


def test_the_concatenator_of_another_pack_stays_its_own(read):
    saved = one("VideoConcatenator", {"session_id": "abc"})
    assert read(saved) == saved
    saved["nodes"].append({"id": 2, "type": "TLBVFI_ChunkProcessor"})
    defined = {"VideoConcatenator": {"input": {"required": {}}, "python_module": "custom_nodes.x"}}
    assert read(saved, defined)["nodes"][0] == saved["nodes"][0]


def test_nodes_in_subgraphs_are_read_too(read):
    saved = one("TLBVFI_Interpolator_V2", {"model_name": "a.pth"})
    graph = read({"nodes": [], "definitions": {"subgraphs": [saved]}})
    assert values_of(graph["definitions"]["subgraphs"][0])[0] == "a.pth"


def test_nodes_of_other_packs_are_left_alone(read):
    assert values_of(read(one("Other", {"x": 3}))) == {"x": 3}
    assert values_of(read(one("Missing", {"x": 3}))) == {"x": 3}


def test_comfyui_s_own_nodes_beside_ours_are_read_by_name_too(read):
    ours = {"id": 2, "type": "TLBVFI_VideoConcatenator", "widgets_values": ["abc"]}
    saved = one("SaveImage", {"filename_prefix": "x"})
    assert values_of(read({"nodes": [*saved["nodes"], ours]})) == ["x"]
    assert values_of(read(saved)) == {"filename_prefix": "x"}
