"""Rollout servers: are they named in one way, and does nothing ask what servers cannot?"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from megarl.algorithms.advantages import estimator
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.rollout.servers.address import parse_addresses
from megarl.rollout.servers.pool import ListedServers

WAYS = ("rollout.servers", "rollout.servers_file", "rollout.launch.replicas")


def check_servers(config: Config) -> None:
    """ConfigError for servers named twice or not at all, and for settings that are not theirs."""
    rollout = config.rollout
    _check_staleness(config)
    given = [bool(rollout.servers), bool(rollout.servers_file), rollout.launch.replicas > 0]
    used = [way for way, is_given in zip(WAYS, given, strict=True) if is_given]
    if rollout.engine != "server":
        if used:
            raise ConfigError(
                f"{used[0]} is given and rollout.engine is {rollout.engine}: servers are asked "
                "where it is server; set it so, or leave them out"
            )
        return
    if len(used) != 1:
        said = f"{' and '.join(used)} are given" if used else "no server is named"
        raise ConfigError(f"rollout.engine is server and {said}: give one of {', '.join(WAYS)}")
    _check_sizes(config)
    if rollout.servers:
        parse_addresses(rollout.servers)
    if "rollout_gpus" in config.resources:
        raise ConfigError(
            "resources.rollout_gpus and rollout.engine server: servers have processes of their "
            "own, beside the run's ranks; leave the key out"
        )
    if rollout.engine_args and not rollout.launch.replicas:
        raise ConfigError(
            f"rollout.engine_args is given and {used[0]} names servers that run already: give "
            "vLLM's arguments where they are started"
        )


def check_servers_here(config: Config) -> None:
    """ConfigError where this machine cannot ask servers, or does not find the list of them."""
    if config.rollout.engine != "server":
        return
    if importlib.util.find_spec("aiohttp") is None:
        raise ConfigError(
            "rollout.engine is server and aiohttp is not installed: pip install 'megarl[servers]'"
        )
    if config.rollout.servers_file:
        ListedServers(Path(config.rollout.servers_file)).known()


def _check_staleness(config: Config) -> None:
    rollout, algorithm = config.rollout, config.algorithm
    if rollout.max_staleness == 0:
        if rollout.partial_rollout:
            raise ConfigError(
                "rollout.partial_rollout is true and rollout.max_staleness is 0: no sample is "
                "unfinished when weights change; set max_staleness to 1 or more"
            )
        return
    found = f"rollout.max_staleness is {rollout.max_staleness} and"
    if rollout.engine != "server":
        raise ConfigError(
            f"{found} rollout.engine is {rollout.engine}, whose ranks take part in training: only "
            "servers generate meanwhile; set rollout.engine=server"
        )
    if algorithm.rollout_is is None:
        raise ConfigError(
            f"{found} algorithm.rollout_is is null: samples of older weights would be learned from "
            "as fresh ones; set rollout_is to token (decoupled PPO) or sequence"
        )
    if algorithm.filter_groups.enable:
        raise ConfigError(
            f"{found} algorithm.filter_groups.enable is true: refills are not drawn ahead of their "
            "step yet; set one of them otherwise"
        )
    if estimator(algorithm.adv_estimator).needs_greedy:
        raise ConfigError(
            f"{found} algorithm.adv_estimator is {algorithm.adv_estimator}, which compares with "
            "greedy answers of the same weights: take another, or max_staleness 0"
        )


def _check_sizes(config: Config) -> None:
    rollout = config.rollout
    own, launched = rollout.tensor_parallel_size, rollout.launch.tensor_parallel_size
    if launched is not None and own not in (1, launched):
        raise ConfigError(
            f"rollout.launch.tensor_parallel_size is {launched} and rollout.tensor_parallel_size "
            f"{own}: both are of the servers; give one of them"
        )
    if launched is not None and not rollout.launch.replicas:
        raise ConfigError(
            "rollout.launch.tensor_parallel_size is given without rollout.launch.replicas: servers "
            "that run already are described by rollout.tensor_parallel_size"
        )
