import numpy as np
import pytest
import torch
from torch import nn

from ki67 import networks
from ki67.errors import Ki67Error
from ki67.networks import (
    Network,
    choose_precision,
    fuse_batch_normalization,
    load_network,
    normalization,
    nuclei_spec,
    read_ranges,
    save_network,
    save_ranges,
    tumor_spec,
)
from ki67.quantized import QuantizedNetwork, _average_squares, _normalize, activation_ranges, computes_int8, traced
from tests.unit.test_networks import lively

needs_int8 = pytest.mark.skipif(not computes_int8(), reason="this processor does not multiply 8-bit integers")
SPECS = {"nuclei": nuclei_spec(), "tumor": tumor_spec("tumor_he", "he")}


def coloured(count: int, side: int = 128, seed: int = 0) -> np.ndarray:
    """Tiles with structures of many sizes, as tissue has them."""
    random = np.random.default_rng(seed)
    tiles = np.zeros((count, side, side, 3))
    for size in (4, 8, 16, 32):
        coarse = random.uniform(0, 64, (count, side // size, side // size, 3))
        tiles += coarse.repeat(size, axis=1).repeat(size, axis=2)
    return np.clip(tiles, 0, 255).astype(np.uint8)


def ranges_of(module, spec, tiles):
    factor, summand = normalization(spec)
    batch = torch.from_numpy(tiles).permute(0, 3, 1, 2).float()
    return activation_ranges(module, [torch.addcmul(summand, batch, factor)])


@pytest.fixture(scope="module", params=list(SPECS))
def pair(request):
    """A network in float32 and in 8-bit integers, and its spec."""
    spec = SPECS[request.param]
    module = lively(spec)
    ranges = ranges_of(fuse_batch_normalization(module), spec, coloured(8, side=160))
    exact = Network(module, spec, device="cpu", precision="float32")
    return exact, Network(module, spec, device="cpu", precision="int8", ranges=ranges), spec


@needs_int8
def test_integers_give_nearly_the_probabilities_of_float32(pair):
    exact, quantized, _ = pair
    tiles = coloured(2, side=160, seed=1)
    expected, found = exact.predict(tiles), quantized.predict(tiles)
    spread = np.abs(expected - expected.mean(axis=(2, 3), keepdims=True)).mean()
    assert np.abs(found - expected).mean() < 0.2 * spread
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.995


@needs_int8
def test_what_lies_beyond_a_tile_is_nothing_for_integers_too(pair):
    exact, quantized, _ = pair
    tiles = coloured(2, side=160, seed=2)
    expected, found = exact.predict(tiles), quantized.predict(tiles)
    edge = np.ones((160, 160), dtype=bool)
    edge[8:-8, 8:-8] = False
    # Padding with what does not stand for 0 gives 0.6 to 0.9 here.
    assert np.corrcoef(found[:, :, edge].ravel(), expected[:, :, edge].ravel())[0, 1] > 0.97


@needs_int8
@pytest.mark.parametrize("threads", [1, 2])
def test_integers_are_the_same_on_any_number_of_threads_and_in_any_batch(pair, threads):
    _, quantized, _ = pair
    tiles = coloured(3, side=96, seed=3)
    expected = quantized.predict_levels(tiles, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for index in range(3):
            np.testing.assert_array_equal(quantized.predict_levels(tiles[index : index + 1], 16)[0], expected[index])
    finally:
        torch.set_num_threads(before)


def test_tracing_leaves_the_answer_as_it_is():
    module = fuse_batch_normalization(lively(tumor_spec("tumor_he", "he")))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(traced(module)(image), module(image))


def test_normalization_in_fixed_point_rounds_to_the_nearest_and_cuts_off():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (50, 9), dtype=np.uint8)
    factor, summand = random.uniform(-2, 3, 7), random.uniform(-100, 100, 7)
    result = np.empty((50, 7), dtype=np.uint8)
    fixed = (factor * 4096).round().astype(np.int32), ((summand + 0.5) * 4096).round().astype(np.int32)
    _normalize(pixels, *fixed, result)
    expected = np.clip(np.rint(pixels[:, :7] * factor + summand), 0, 255)
    assert np.abs(result - expected).max() <= 1
    assert (result != expected).mean() < 0.05


def test_squares_are_averaged():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    result = np.empty((3, 4, 3), dtype=np.uint8)
    _average_squares(image, result)
    expected = image.reshape(3, 2, 4, 2, 3).astype(int).sum(axis=(1, 3))
    np.testing.assert_array_equal(result, (expected + 2) // 4)


@needs_int8
def test_ranges_of_another_network_are_refused():
    spec = nuclei_spec()
    module = fuse_batch_normalization(lively(spec))
    with pytest.raises(Ki67Error, match="calibrate it again"):
        QuantizedNetwork(module, {}, spec.mean, spec.std)


@needs_int8
def test_a_layer_that_is_not_known_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.odd, self.last = nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.last(self.odd(self.first(x)))

    module, spec = Odd().eval(), nuclei_spec()
    with pytest.raises(Ki67Error, match="odd cannot be computed in 8-bit integers"):
        QuantizedNetwork(module, ranges_of(module, spec, coloured(1, 32)), spec.mean, spec.std)


# ---------------------------------------------------------------------------------------------- on disk


@pytest.fixture
def saved(tmp_path):
    module, spec = lively(nuclei_spec()), nuclei_spec()
    spec = save_network(tmp_path, module, spec, "# A card\n")
    ranges = ranges_of(fuse_batch_normalization(module), spec, coloured(1, 64))
    save_ranges(tmp_path, ranges, spec)
    return tmp_path, spec, ranges


def test_ranges_come_back_and_decide_in_which_numbers_a_network_computes(saved, monkeypatch):
    folder, spec, ranges = saved
    back = read_ranges(folder, spec)
    assert back is not None
    assert {name: value.tolist() for name, value in back.items()} == {n: v.tolist() for n, v in ranges.items()}
    expected = "int8" if computes_int8() else load_network(folder, device="cpu", precision="bfloat16").precision
    assert load_network(folder, device="cpu").precision == expected
    assert load_network(folder, device="cpu", precision="float32").identity["precision"] == "float32"
    monkeypatch.setattr(networks, "computes_int8", lambda: False)
    assert load_network(folder, device="cpu").precision in {"bfloat16", "float32"}
    with pytest.raises(Ki67Error, match="needs a processor with AVX512-VNNI or AMX; set precision to auto"):
        load_network(folder, device="cpu", precision="int8")


def test_ranges_of_other_weights_or_damaged_ones_are_refused(saved):
    folder, spec, ranges = saved
    save_ranges(folder, ranges, nuclei_spec())
    with pytest.raises(Ki67Error, match=r"nuclei: int8.safetensors belongs to weights .* calibrate again"):
        read_ranges(folder, spec)
    (folder / "int8.safetensors").write_bytes(b"no ranges")
    with pytest.raises(Ki67Error, match=r"nuclei: int8.safetensors is damaged"):
        read_ranges(folder, spec)


def test_without_ranges_integers_are_not_chosen_and_asking_for_them_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(networks, "computes_int8", lambda: True)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, None, "nuclei") in {"bfloat16", "float32"}
    assert choose_precision("auto", cpu, {}, "nuclei") == "int8"
    assert choose_precision("float32", cpu, {}, "nuclei") == "float32"
    with pytest.raises(Ki67Error, match=r"network nuclei: precision int8 needs int8.safetensors .* ki67 calibrate"):
        choose_precision("int8", cpu, None, "nuclei")
