"""Builds the source archive, and from it the wheel, and checks what is in them; imports what the wheel holds.

The wheel is the package with py.typed and its experiments, no tests, the licence. The experiments stay in it
since the notebooks use them wherever the package is installed, and `python -m adamfx.experiments` is a
program that users run; they are a ninth of its bytes, and importing adamfx does not import them.
"""

import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        build = [sys.executable, "-m", "build", "--outdir", out, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,), (source,) = Path(out).glob("*.whl"), Path(out).glob("*.tar.gz")
        with tarfile.open(source) as held:
            sources = {n.partition("/")[2] for n in held.getnames()}
        archive = zipfile.ZipFile(wheel)
        names = archive.namelist()
        metadata = next(archive.read(n).decode() for n in names if n.endswith("/METADATA"))
        code = "import adamfx as fx, adamfx.experiments; print(fx.__version__, fx.__file__)"
        isolated = [
            sys.executable,
            "-P",
            "-c",
            f"import sys; sys.path[:0] = [{str(wheel)!r}]; {code}",
        ]
        said = subprocess.run(isolated, check=True, cwd=out, capture_output=True, text=True).stdout
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert said.startswith(f"{version} {wheel}"), f"imported {said}"
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    hidden = {n for n in kept.split() if n.startswith(".")}  # of CI and of git
    lost = set(kept.split()) - hidden - sources
    assert not lost, f"the source archive lacks {sorted(lost)}"
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "adamfx").rglob("*.py")}
    missing = (wanted | {"adamfx/py.typed"}) - set(names)
    strange = [n for n in names if not n.startswith("adamfx")]
    required = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert not missing, f"the wheel lacks {sorted(missing)}"
    assert not strange, f"the wheel holds {strange}"
    assert any(n.endswith("licenses/LICENSE") for n in names), "the wheel lacks the licence"
    assert [r.split()[1].split(">")[0] for r in required] == ["jax"], f"it requires {required}"
    print(f"{wheel.name}: {len(names)} files, requires {required[0].split(': ')[1]}")


if __name__ == "__main__":
    main()
