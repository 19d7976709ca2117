"""Every line reaches the console once: printed ones, and those that modules log from any thread."""

from __future__ import annotations

import asyncio
import logging

import pytest
from logged_lines import Lines, logged_lines

from kray.config import KrayConfig
from kray.driver.actor import Driver
from kray.driver.output import Console, logged_to
from kray.errors import KrayError

logger = logging.getLogger("kray.tests")


def test_warnings_are_marked_and_notes_are_plain(capsys):
    with logged_to(Console()):
        logger.info("pool: 2 of 2 engines serve")
        logger.warning("prompts.train: %d rows", 3)
        logger.debug("nothing to show")
    assert capsys.readouterr().out == "pool: 2 of 2 engines serve\nwarning: prompts.train: 3 rows\n"


def test_an_inner_console_takes_the_lines_of_the_outer_one():
    inner = Lines()
    with logged_lines() as outer:
        logger.info("first")
        with logged_to(inner):
            logger.info("second")
        logger.info("third")
    assert (outer, inner.lines) == (["first", "third"], ["second"])


def stream(work) -> list:
    """What a driver yields for the work, and the newest line of its status."""

    async def run() -> list:
        driver = Driver(KrayConfig(), "", "/nowhere", "", {})
        found = [item async for item in driver._stream(work(driver))]
        return [*found, driver.live_status.last_line]

    return asyncio.run(run())


def test_the_driver_streams_lines_of_all_threads_in_order(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the driver sets it

    async def work(driver: Driver) -> int:
        driver.console.print("start")
        await asyncio.to_thread(logger.info, "from a thread")
        logger.warning("from the loop")
        return 7

    assert stream(work) == ["start", "from a thread", "warning: from the loop", 7, "warning: from the loop"]
    assert not [handler for handler in logging.getLogger("kray").handlers if type(handler).__name__ == "LineHandler"]


def test_the_driver_streams_the_lines_before_an_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    async def work(driver: Driver) -> None:
        logger.info("before")
        raise KrayError("the disk is full")

    async def run(seen: list[str]) -> None:
        driver = Driver(KrayConfig(), "", "/nowhere", "", {})
        async for line in driver._stream(work(driver)):
            seen.append(line)

    seen: list[str] = []
    with pytest.raises(KrayError, match="the disk is full"):
        asyncio.run(run(seen))
    assert seen == ["before"]
