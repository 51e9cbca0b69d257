import ast
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import kinema


def test_every_public_name_is_listed_and_imports() -> None:
    assert set(kinema.__all__) <= set(dir(kinema))
    for name in kinema.__all__:
        assert getattr(kinema, name) is getattr(kinema, name)
    with pytest.raises(AttributeError, match="has no attribute 'simulate'"):
        kinema.simulate  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_late() -> None:
    """The block for type checkers repeats the table, because they do not run it."""
    tree = ast.parse(Path(kinema.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    found = {alias.name: node.module for node in imports for alias in node.names}
    assert found == kinema._MODULES


def test_help_shows_what_there_is() -> None:
    text = pydoc.plain(pydoc.render_doc(kinema))
    for name in set(kinema.__all__) - {"__version__"}:
        assert name in text
    assert "device" in text


def test_help_needs_no_extra() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('httpx', 'websockets', 'gymnasium', 'fastapi')))\n"
        "import importlib.util, pydoc, kinema\n"
        "assert 'load' in dir(kinema) and 'connect' not in dir(kinema)\n"
        "assert 'ServerError' in pydoc.plain(pydoc.render_doc(kinema))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bundled_worlds_are_named() -> None:
    assert "pusht" in kinema.worlds()


def test_one_base_class_catches_every_error() -> None:
    errors = [getattr(kinema, name) for name in kinema.__all__ if name.endswith("Error")]
    assert len(errors) > 5
    assert all(issubclass(error, kinema.KinemaError) for error in errors)
    assert issubclass(kinema.KinemaError, ValueError)
    assert kinema.ServerError("gone", 503).status == 503
