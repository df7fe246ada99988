"""Image transfers between the CPU and a device, and what is begun before it is needed."""

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.transfer import Downloads, Uploads, one_ahead
from hypothesis import given
from hypothesis import strategies as st


def begun(items, log):
    for item in items:
        log.append(item)
        yield item


def slow(item):
    return item.isupper()


@given(items=st.text("abAB", max_size=12))
def test_items_come_in_order_with_at_most_one_slow_one_ahead(items):
    log = []
    for number, item in enumerate(one_ahead(begun(items, log), slow)):
        assert item == items[number]
        ahead = sum(map(slow, log[number + 1 :]))
        follows = any(map(slow, items[number + 1 :]))
        assert ahead == follows if slow(item) else ahead <= 1
    assert log == list(items)


def test_what_takes_no_time_is_never_begun_ahead():
    log = []
    for count, _ in enumerate(one_ahead(begun("aaaa", log), slow), start=1):
        assert len(log) == count


def test_a_slow_item_waits_for_the_next_to_be_begun():
    log = []
    items = one_ahead(begun("aAbBcC", log), slow)
    seen = []
    for item in items:
        seen.append((item, "".join(log)))
    assert seen == [
        ("a", "a"),
        ("A", "aAbB"),
        ("b", "aAbB"),
        ("B", "aAbBcC"),
        ("c", "aAbBcC"),
        ("C", "aAbBcC"),
    ]


def test_an_error_comes_after_the_items_begun_before_it():
    def failing():
        yield from "AbB"
        raise ValueError("at the third")

    items = one_ahead(failing(), slow)
    assert [next(items) for _ in range(3)] == list("AbB")
    with pytest.raises(ValueError, match="third"):
        next(items)


def test_closing_stops_what_is_begun():
    log, closed = [], []

    def source():
        try:
            yield from begun("ABCD", log)
        finally:
            closed.append(True)

    items = one_ahead(source(), slow)
    next(items)
    items.close()
    assert log == ["A", "B"]
    assert closed == [True]


def test_on_the_cpu_both_ways_hand_on_the_very_image():
    image = torch.rand(3, 4, 4)
    assert Uploads()(image, torch.device("cpu")) is image
    download = Downloads()(image)
    assert not download.takes_time
    assert download.result() is image


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_go_to_a_gpu_and_come_back_unchanged():
    device = torch.device("cuda")
    up, down = Uploads(), Downloads()
    images = [torch.rand(3, 270, 480) for _ in range(8)]
    downloads = [down(up(image, device) * 2) for image in images]
    assert all(d.takes_time for d in downloads)
    assert all(torch.equal(d.result(), i * 2) for d, i in zip(downloads, images, strict=True))
    assert all(d.result().device.type == "cpu" for d in downloads)
