"""The drawn recording of the tests of evaluation."""

from ...evaluation.conftest import recording as recording
