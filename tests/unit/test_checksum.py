import hashlib

import numpy as np

from ki67.checksum import SAMPLE_BYTES, SAMPLES, file_checksum

LIMIT = SAMPLES * SAMPLE_BYTES


def drawn_file(path, size: int):
    path.write_bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes())
    return path


def test_a_small_file_has_the_checksum_that_everyone_computes(tmp_path):
    path = drawn_file(tmp_path / "a", LIMIT)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_checksum(path) == {"bytes": LIMIT, "sampled_bytes": LIMIT, "sha256": expected}


def test_of_a_large_file_the_ends_and_places_between_count(tmp_path):
    path = drawn_file(tmp_path / "a", 3 * LIMIT + 7)
    first = file_checksum(path)
    assert (first["bytes"], first["sampled_bytes"]) == (3 * LIMIT + 7, LIMIT)
    content = bytearray(path.read_bytes())
    for place in (0, len(content) - 1, (len(content) - SAMPLE_BYTES) * 10 // (SAMPLES - 1)):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert file_checksum(path)["sha256"] != first["sha256"]
    path.write_bytes(content)
    assert file_checksum(path) == first


def test_all_files_of_a_slide_count(tmp_path):
    one, other = drawn_file(tmp_path / "a", 10), drawn_file(tmp_path / "b", 20)
    both = file_checksum(one, [other])
    assert both["bytes"] == 30
    assert both["sha256"] == hashlib.sha256(one.read_bytes() + other.read_bytes()).hexdigest()


def test_a_file_that_is_absent_has_none(tmp_path):
    assert file_checksum(tmp_path / "absent") is None
    assert file_checksum(drawn_file(tmp_path / "a", 10), [tmp_path]) is None
