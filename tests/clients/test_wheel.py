"""The Python client as a package of its own, built from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "clients" / "python"
ASK = """
import asyncio
from queryrec import client
from queryrec.v1 import suggestion_pb2


async def main():
    async with client.QueryRecClient({target!r}, timeout_s=10) as c:
        answer = await c.recommend("suggestion", "wireless earbuds")
        print(len(answer.suggestions), client.__file__, suggestion_pb2.__file__, sep="\\n")


asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_client_alone_asks_an_engine(live_engine, tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(CLIENT)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    assert (tmp_path / "unpacked/queryrec/py.typed").is_file()
    asked = subprocess.run(
        [sys.executable, "-c", ASK.format(target=live_engine.target)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    num, *files = asked.stdout.split()
    assert int(num) > 0
    assert all(f.startswith(str(tmp_path / "unpacked")) for f in files)
