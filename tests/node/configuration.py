"""The files and the environment of a node: nothing of the machine's own configuration is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["make_certificates", "make_environment", "write_files"]

_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


def write_files(folder: Path, port: int, cookie: str, settings: Mapping[str, str]) -> None:
    """Write what a node reads at its start; *settings* are further lines of rabbitmq.conf."""
    defaults = {
        "listeners.tcp.1": f"127.0.0.1:{port}",
        "log.console": "false",
        "log.file.level": "info",
        "disk_free_limit.absolute": "10MB",  # a small disk must not look like a fault
        "vm_memory_high_watermark.relative": "0.6",
    }
    text = "".join(f"{key} = {value}\n" for key, value in (defaults | dict(settings)).items())
    (folder / "rabbitmq.conf").write_text(text)
    (folder / "enabled_plugins").write_text("[].\n")
    (folder / "environment").write_text("")
    (folder / "config.d").mkdir()
    cookie_file = folder / ".erlang.cookie"
    cookie_file.write_text(cookie)
    cookie_file.chmod(0o400)


def make_certificates(folder: Path, port: int) -> tuple[dict[str, str], Path]:
    """Make a certificate for localhost and 127.0.0.1; return the settings that use it on *port*, and its authority."""
    import trustme  # noqa: PLC0415 - only the TLS tests need it, the benchmarks do not have it

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(folder / "certificate.pem"), append=True)
    settings = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": str(ca_file),
        "ssl_options.certfile": str(folder / "certificate.pem"),
        "ssl_options.keyfile": str(folder / "key.pem"),
        "ssl_options.verify": "verify_none",
        "ssl_options.fail_if_no_peer_cert": "false",
    }
    return settings, ca_file


def make_environment(folder: Path, name: str, distribution_port: int, epmd_port: int) -> dict[str, str]:
    """Return the environment of everything that is started for the node *name*."""
    own = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET", "COOKIE"))
    }
    return own | {
        "HOME": f"{folder}",  # where Erlang looks for the cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_CRASH_DUMP_SECONDS": "0",
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_USE_LONGNAME": "false",
        "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment",
        "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
        "RABBITMQ_CONFIG_FILES": f"{folder}/config.d",
        "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
        "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
        "RABBITMQ_MNESIA_BASE": f"{folder}/data",
        "RABBITMQ_LOG_BASE": f"{folder}",
        "RABBITMQ_LOGS": f"{folder}/node.log",
        "RABBITMQ_PID_FILE": f"{folder}/pid",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK,
        # Any free port: the default is a range of eleven, which suites side by side would share.
        "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK,
        "RABBITMQ_CTL_DIST_PORT_MIN": "0",
        "RABBITMQ_CTL_DIST_PORT_MAX": "0",
        # The script becomes the broker instead of its parent, so its process id is the broker's.
        "RABBITMQ_ALLOW_INPUT": "1",
    }
