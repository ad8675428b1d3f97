import subprocess
import sys
from pathlib import Path

import superpose
from superpose import core

ROOT = Path(__file__).parents[1]


def test_all_of_the_core_is_re_exported():
    assert set(superpose.__all__) - {"__version__"} == set(core.__all__)
    for name in core.__all__:
        assert getattr(superpose, name) is getattr(core, name)


def test_importing_the_package_does_not_import_pytorch():
    code = "import superpose, sys; superpose.__version__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_core_imports_nothing_of_the_trainer_nor_transformers():
    code = (
        "import superpose.core, sys\n"
        "loaded = [m for m in sys.modules if m.startswith('superpose.') and not m.startswith('superpose.core')]\n"
        "assert not loaded, loaded\nassert 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_rooms_whose_names_load_on_first_use_load_no_pytorch():
    packages = (ROOT / "src/superpose").rglob("__init__.py")
    rooms = [file.parent.name for file in packages if "__getattr__ = names(" in file.read_text(encoding="utf-8")]
    assert {"compare", "engine", "reproduce", "share", "train", "tune"} <= set(rooms)
    imports = ", ".join(f"superpose.{room}" for room in rooms)
    code = f"import sys, {imports}\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_processes_that_prepare_text_load_no_pytorch():
    code = "import superpose.data.prepare, sys\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
