"""Memory stays flat over tens of thousands of batches, in a process of its own."""

import json
import sys

import pytest

from pipeline.shards.manifest import Recipe
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import ROOT, run_command

BATCHES = {"stream": 50_000, "cache": 20_000}

MEASURE = """
import json, sys
from pathlib import Path
import psutil, torch
from pipeline.loading.options import LoaderOptions
from pipeline.loading.cache import ResidentCache
from pipeline.loading.loader import Loader
from pipeline.shards.manifest import ShardSet

folder, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
shards, options = ShardSet.open(Path(folder)), LoaderOptions(8, 32, dtype=torch.uint8)
if kind == "stream":
    batches = Loader(shards, options)
else:
    batches = ResidentCache(shards, options, torch.device("cpu"))
process, resident = psutil.Process(), []
for number in range(count):
    assert next(batches).shape == (8, 32, 32, 3)
    if number % (count // 50) == count // 50 - 1:
        resident.append(process.memory_info().rss)
print(json.dumps({"resident": resident, "threads": process.num_threads(),
                  "files": len(process.open_files())}))
batches.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", BATCHES)
def test_resident_memory_does_not_grow(tmp_path, kind):
    recipe = Recipe(store="raw", crop="centre", size=32, filter="bilinear")
    shards = pack_pictures(tmp_path, numbered_pictures(100), per_shard=20, recipe=recipe)
    command = (sys.executable, "-W", "error", "-c", MEASURE, shards.folder, kind, BATCHES[kind])
    ended = run_command(*command, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")
    measured = json.loads(ended.stdout)
    settled = measured["resident"][4:]  # a tenth of the batches to warm up
    assert len(settled) == 46
    assert max(settled) <= 1.05 * min(settled)
    assert measured["files"] <= len(shards.tars)
