"""A task on each node looks at the model, and says which node lacks it."""

from __future__ import annotations

import asyncio

import pytest

from kray.driver.model_on_nodes import look_everywhere, look_on
from kray.errors import ConfigError


def test_nodes_that_lack_the_model_are_named(ray_local, tied_policy, tmp_path):
    nodes = {ray_local.nodes()[0]["NodeID"]: "10.0.0.7"}
    asyncio.run(look_on(str(tied_policy), nodes, 120, {}))
    with pytest.raises(ConfigError, match=r"model\.path: node 10\.0\.0\.7: .*gone is not there"):
        asyncio.run(look_on(str(tmp_path / "gone"), nodes, 120, {}))
    # A machine alone has been looked at before.
    asyncio.run(look_everywhere(str(tmp_path / "gone"), [{"CPU": 1.0}], 1, {}))
