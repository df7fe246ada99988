"""Reading what the benchmark writes."""

import av
import pytest


@pytest.fixture
def pictures_of():
    """Read a clip's frames as RGB arrays."""

    def read(path):
        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    return read
