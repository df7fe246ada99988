"""Sessions as nodes find them; needs no ComfyUI."""

from types import SimpleNamespace

import pytest
from comfyui_tlbvfi.encoding.reader import file_identity
from comfyui_tlbvfi.nodes.sessions import require_same_sound
from comfyui_tlbvfi.tlbvfi.errors import SettingsError


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"sound")
    return path


@pytest.fixture
def session(sound):
    """What is read of a session whose chunks were made with this sound."""
    return SimpleNamespace(id="job", manifest=SimpleNamespace(source=file_identity(sound)))


def test_sound_that_was_replaced_is_refused(session, sound):
    require_same_sound(session, sound)
    sound.write_bytes(b"other")
    with pytest.raises(SettingsError, match=r"clip\.mp4 has been replaced"):
        require_same_sound(session, sound)


def test_sound_that_is_gone_is_left_to_the_join_to_tell(session, sound):
    sound.unlink()
    require_same_sound(session, sound)
