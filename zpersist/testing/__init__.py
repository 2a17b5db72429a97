"""What people who write a stash test it with: a conformance suite and a state machine.

.. code-block:: python

    from zpersist.testing import StashSuite, stash_machine

    class TestMyStash(StashSuite):
        def make(self, path):
            return MyStash(path / "data")

    TestMyStashMachine = stash_machine(MyStash.in_memory).TestCase

The suite needs pytest, the machine needs hypothesis: ``pip install 'zpersist[test]'``.
"""

import pytest

pytest.register_assert_rewrite("zpersist.testing.machine", "zpersist.testing.reading", "zpersist.testing.suite")

from zpersist.testing.machine import stash_machine as stash_machine
from zpersist.testing.reading import ReadStashSuite as ReadStashSuite
from zpersist.testing.suite import StashSuite as StashSuite

__all__ = ["ReadStashSuite", "StashSuite", "stash_machine"]
