"""Imports of 0.1.0 go on working."""

import importlib
import warnings

import pytest

from kinema.moved import MOVED
from kinema.types import WorldError


@pytest.mark.parametrize("name", MOVED)
def test_an_old_module_has_the_names_of_the_new_one_and_says_so(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = importlib.import_module(name)
    new = importlib.import_module(MOVED[name])
    public = [key for key in vars(new) if key[:1] != "_"]
    assert public
    assert all(getattr(old, key) is getattr(new, key) for key in public)
    with pytest.warns(DeprecationWarning, match=f"{name} is now {MOVED[name]}"):
        importlib.reload(old)


def test_errors_are_the_same_class() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = importlib.import_module("kinema.world_model")
    assert old.WorldError is WorldError
