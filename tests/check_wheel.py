"""Builds the wheel and checks what is in it: the package with py.typed, no tests, the licence."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", out, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(out).glob("*.whl")
        archive = zipfile.ZipFile(wheel)
        names = archive.namelist()
        metadata = next(archive.read(n).decode() for n in names if n.endswith("/METADATA"))
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
